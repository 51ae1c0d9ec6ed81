"""JSON answers in ASCII: the name of a file may hold bytes that are no UTF-8, and they must come to the client all the same."""

from __future__ import annotations

import json
from typing import Any

from starlette import responses


class JSONResponse(responses.JSONResponse):
    """Such bytes are escaped as PEP 383 has them: ``\\udc80`` to ``\\udcff``."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()
