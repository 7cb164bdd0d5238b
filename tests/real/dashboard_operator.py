"""One operator at the pages, in a process of his own: forms come in as lines of JSON, and what the page says goes out."""

from __future__ import annotations

import json
import os
import re
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(name: str) -> None:
    """Sign in, say so, and send each form that comes."""
    django.setup()
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser(name))
    _tell("ready")
    for line in sys.stdin:
        order = json.loads(line)
        answer = client.post(f"{order['page']}operate/", order["form"])
        page = client.get(order["page"]).content.decode()
        said = re.findall(r'<li[^>]* class="(?:success|warning|error|info)">(.*?)</li>', page, re.DOTALL)
        _tell(json.dumps({"status": answer.status_code, "said": [text.strip() for text in said]}))


if __name__ == "__main__":
    main(sys.argv[1])
