"""The pages in the admin, registered on the default admin site.

`RESILIENCE["DASHBOARD"]["ADMIN"] = False` leaves them out. On an admin site of your own, register them yourself:
`site.register(Circuit, CircuitAdmin)` and `site.register(Run, RunAdmin)`.
"""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin

from resilience import conf
from resilience.dashboard.circuit_admin import CircuitAdmin
from resilience.dashboard.run_admin import RunAdmin
from resilience.models import Circuit
from resilience.runs.models import Run

__all__ = ["CircuitAdmin", "RunAdmin"]

# With wrong settings the pages are registered: raising here would hide what the system checks have to say.
if conf.problems(getattr(settings, "RESILIENCE", {})) or conf.current().dashboard.get("ADMIN", True):
    admin.site.register(Circuit, CircuitAdmin)
    admin.site.register(Run, RunAdmin)
