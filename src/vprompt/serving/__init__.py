"""A bank of adapters behind HTTP: `vprompt serve`.

The service itself (`service`, `batcher`, `decoding`, `metrics`) knows no web framework; `app`, `gate` and `server` need
`pip install 'vprompt[serve]'`.
"""

from vprompt.serving.errors import RequestError
from vprompt.serving.service import Answer, Limits, Service

__all__ = ["Answer", "Limits", "RequestError", "Service"]
