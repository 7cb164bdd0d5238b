"""What each code of each database means for work that wants to be run again: the tables, as data.

`classify` reads them for calls, `resilience.db` for transactions, so that both say the same. A rule says what is right when COMMIT had not been sent. `ambiguous` says that the same error, should it arise
while COMMIT is under way, leaves open whether the work was stored.

Source:
    PostgreSQL, appendix "Error Codes" and chapter 13.5 "Serialization Failure Handling"; MySQL and MariaDB,
    "Error Reference" and "InnoDB Error Handling"; SQLite, "Result and Error Codes"; python-oracledb,
    "High Availability". Which of them are transient: compared with Npgsql, Rails, oslo.db, Spring and SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resilience.calls.kinds import ErrorKind
from resilience.redaction import text_of

__all__ = ["CODELESS", "MESSAGES", "MYSQL", "ORACLE", "POSTGRESQL", "POSTGRESQL_CLASSES", "SQLITE", "Rule", "find_rule"]


@dataclass(frozen=True, slots=True)
class Rule:
    """The meaning of a code; see `resilience.db.errors.DatabaseErrorInfo` for the fields."""

    kind: ErrorKind
    retry: bool = False
    new_connection: bool = False
    ambiguous: bool = False


CONTENTION = Rule(ErrorKind.CONFLICT, retry=True)
LOST = Rule(ErrorKind.CONNECTION, retry=True, new_connection=True, ambiguous=True)
UNREACHABLE = Rule(ErrorKind.CONNECTION, retry=True, new_connection=True)
CROWDED = Rule(ErrorKind.OVERLOADED, retry=True, new_connection=True)
DEMOTED = Rule(ErrorKind.SERVER_ERROR, retry=True, new_connection=True)
UNKNOWABLE = Rule(ErrorKind.CONNECTION, new_connection=True, ambiguous=True)
SERVER = Rule(ErrorKind.SERVER_ERROR)
RESOURCES = Rule(ErrorKind.OVERLOADED)
CANCELLED = Rule(ErrorKind.TIMEOUT)
NOT_WAITED = Rule(ErrorKind.CONFLICT)
INTEGRITY = Rule(ErrorKind.INTEGRITY)
MISTAKE = Rule(ErrorKind.INVALID_REQUEST)
LOGIN = Rule(ErrorKind.AUTH, new_connection=True)
PERMISSION = Rule(ErrorKind.PERMISSION)
MISSING = Rule(ErrorKind.NOT_FOUND, new_connection=True)

#: SQLSTATE to rule. CockroachDB, YugabyteDB and Aurora DSQL (OC...) speak it too.
POSTGRESQL: Mapping[str, Rule] = {
    "40000": CONTENTION,
    "40001": CONTENTION,
    "40002": INTEGRITY,
    "40003": UNKNOWABLE,
    "40P01": CONTENTION,
    "OC000": CONTENTION,
    "OC001": CONTENTION,
    "55P03": CONTENTION,
    "55000": NOT_WAITED,
    "55006": NOT_WAITED,
    "72000": CONTENTION,
    "57014": CANCELLED,
    "57P01": LOST,
    "57P02": LOST,
    "57P03": UNREACHABLE,
    "57P04": MISSING,
    "57P05": LOST,
    "25P02": MISTAKE,
    "25P03": LOST,
    "25P04": Rule(ErrorKind.TIMEOUT, new_connection=True, ambiguous=True),
    "25006": DEMOTED,
    "08000": LOST,
    "08001": UNREACHABLE,
    "08003": LOST,
    "08004": UNREACHABLE,
    "08006": LOST,
    "08007": UNKNOWABLE,
    # Whatever PgBouncer has to say comes as a protocol violation.
    "08P01": LOST,
    "53300": CROWDED,
    "53100": RESOURCES,
    "58000": SERVER,
    "58030": SERVER,
    "28P01": LOGIN,
    "28000": LOGIN,
    "3D000": MISSING,
    "42501": PERMISSION,
}

#: What the first two characters of a SQLSTATE mean when the code itself has no rule.
POSTGRESQL_CLASSES: Mapping[str, Rule] = {
    "08": LOST,
    "22": MISTAKE,
    "23": INTEGRITY,
    "25": MISTAKE,
    "26": MISTAKE,
    "28": LOGIN,
    "40": CONTENTION,
    "42": MISTAKE,
    "53": RESOURCES,
    "58": SERVER,
    "XX": SERVER,
}

#: Error number of MySQL and MariaDB to rule.
MYSQL: Mapping[int, Rule] = {
    0: LOST,
    1020: CONTENTION,
    1205: CONTENTION,
    1213: CONTENTION,
    1614: CONTENTION,
    3101: CONTENTION,
    3572: NOT_WAITED,
    1180: Rule(ErrorKind.SERVER_ERROR, ambiguous=True),
    1040: CROWDED,
    1203: CROWDED,
    1226: CROWDED,
    **dict.fromkeys((2001, 2002, 2003, 2004, 2005, 2012), UNREACHABLE),
    **dict.fromkeys((1053, 1158, 1159, 1160, 1161, 1184, 1927, 4031), LOST),
    **dict.fromkeys((2006, 2013, 2014, 2026, 2027, 2045, 2055), LOST),
    1047: DEMOTED,
    1290: DEMOTED,
    1836: DEMOTED,
    1792: MISTAKE,
    1206: RESOURCES,
    1028: CANCELLED,
    1317: CANCELLED,
    1969: CANCELLED,
    3024: CANCELLED,
    1305: MISTAKE,
    **dict.fromkeys((1048, 1062, 1169, 1216, 1217, 1451, 1452, 1557, 1586, 3819, 4025), INTEGRITY),
    **dict.fromkeys((1044, 1142, 1143, 1227), PERMISSION),
    **dict.fromkeys((1045, 1698, 1862), LOGIN),
    1049: MISSING,
}

#: Extended, then primary result code of SQLite to rule. A COMMIT that fails has a definite outcome: it is in this process.
SQLITE: Mapping[int, Rule] = {
    5: CONTENTION,
    261: CONTENTION,
    517: CONTENTION,
    773: CONTENTION,
    6: CONTENTION,
    262: CONTENTION,
    518: CONTENTION,
    17: CONTENTION,
    3: PERMISSION,
    8: PERMISSION,
    9: CANCELLED,
    10: SERVER,
    11: SERVER,
    13: RESOURCES,
    14: SERVER,
    19: INTEGRITY,
    26: SERVER,
}

#: Number of an ORA error to rule.
ORACLE: Mapping[int, Rule] = {
    60: CONTENTION,
    8177: CONTENTION,
    54: NOT_WAITED,
    30006: CONTENTION,
    **dict.fromkeys((28, 1012, 2396, 3113, 3114, 3135, 12571), LOST),
    **dict.fromkeys((1033, 1034, 1089, 1090, 1092, 12514, 12541, 12757), UNREACHABLE),
    **dict.fromkeys((1, 1400, 2290, 2291, 2292, 2091), INTEGRITY),
    1017: LOGIN,
    **dict.fromkeys((1013,), CANCELLED),
}

#: Codes that python-oracledb itself gives, as in `full_code`.
ORACLE_DRIVER: Mapping[str, Rule] = dict.fromkeys(("DPY-1001", "DPY-4011", "DPI-1010", "DPI-1080"), LOST) | {
    "DPY-6005": UNREACHABLE
}

#: Class names of a driver's own errors that carry no code.
CODELESS: Mapping[str, Rule] = {
    "ConnectionTimeout": UNREACHABLE,
    "PoolTimeout": CROWDED,
    "TooManyRequests": CROWDED,
    "PoolClosed": MISTAKE,
}

#: Texts of errors that carry no code, first match wins: what a client library says when nobody answered.
MESSAGES: tuple[tuple[str, Rule], ...] = (
    ("password authentication failed", LOGIN),
    ("does not exist", MISTAKE),
    ("deadlock", CONTENTION),
    ("could not serialize", CONTENTION),
    ("is locked", CONTENTION),
    ("lock timeout", CONTENTION),
    ("lock wait timeout", CONTENTION),
    ("could not obtain lock", NOT_WAITED),
    ("too many connections", CROWDED),
    ("too many clients", CROWDED),
    ("connection slots", CROWDED),
    ("statement timeout", CANCELLED),
    ("connection refused", UNREACHABLE),
    ("connection failed", UNREACHABLE),
    ("could not connect", UNREACHABLE),
    ("can't connect", UNREACHABLE),
    ("connection timeout expired", UNREACHABLE),
    ("could not translate host name", UNREACHABLE),
    ("failed to resolve", UNREACHABLE),
    ("starting up", UNREACHABLE),
    ("gone away", LOST),
    ("lost connection", LOST),
    ("server closed the connection", LOST),
    ("closed the connection unexpectedly", LOST),
    ("terminating connection", LOST),
    ("connection already closed", LOST),
    ("connection is closed", LOST),
    ("connection is lost", LOST),
    ("connection socket closed", LOST),
    ("connection is bad", LOST),
    ("connection not open", LOST),
    ("consuming input failed", LOST),
    ("sending query", LOST),
    ("sending prepared query", LOST),
    ("could not receive data from server", LOST),
    ("could not send data to server", LOST),
    ("ssl syscall error", LOST),
    ("ssl connection has been closed", LOST),
    ("connection reset", LOST),
    ("broken pipe", LOST),
    ("cannot operate on a closed database", UNREACHABLE),
)

_OPTION_PREVENTS, _ERROR_DURING_COMMIT = 1290, 1180
#: Numbers that the client library of MySQL gives, not the server.
_CLIENT_ERRORS = range(2000, 3000)
#: Where PostgreSQL reports that lock_timeout ended a wait; other places report that NOWAIT did not want to wait.
_LOCK_TIMEOUT_SOURCE = "ProcessInterrupts"


def find_rule(error: BaseException) -> tuple[Rule | None, str] | None:
    """Return the rule for a driver's error, None for a code without one, and the code; None when it carries no code."""
    number = error.args[0] if error.args else None
    result_code = getattr(error, "sqlite_errorcode", None)
    if isinstance(result_code, int):
        # The low byte is the primary code; the rest says more (SQLITE_BUSY_SNAPSHOT).
        return SQLITE.get(result_code) or SQLITE.get(result_code & 0xFF), str(result_code)
    if isinstance(number, int):
        return _rule_of_number(number, text_of(error)), str(number)
    if isinstance(full_code := getattr(number, "full_code", None), str):
        return ORACLE_DRIVER.get(full_code) or ORACLE.get(getattr(number, "code", 0)), full_code
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return (_rule_of_state(state, error), state) if isinstance(state, str) else None


def _rule_of_number(number: int, text: str) -> Rule | None:
    if number == _OPTION_PREVENTS and "read" not in text:
        return MISTAKE  # one number for every server option; the option's name says which
    if number == _ERROR_DURING_COMMIT and "149" in text:
        return CONTENTION  # the storage engine's own deadlock number, met at COMMIT
    return MYSQL.get(number) or (UNKNOWABLE if number in _CLIENT_ERRORS else None)


def _rule_of_state(state: str, error: BaseException) -> Rule | None:
    if state == "55P03":
        source = getattr(getattr(error, "diag", None), "source_function", None)
        return CONTENTION if source in {None, _LOCK_TIMEOUT_SOURCE} else NOT_WAITED
    return POSTGRESQL.get(state) or POSTGRESQL_CLASSES.get(state[:2])
