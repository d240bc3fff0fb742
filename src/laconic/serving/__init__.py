"""A bank of adapters behind HTTP: `laconic serve`.

The service itself (`service`, `batcher`, `decoding`, `metrics`) knows no web framework; `app`, `gate` and `server` need
`pip install 'laconic[serve]'`.
"""

from laconic.serving.limits import Limits
from laconic.serving.problems import RequestError
from laconic.serving.service import Answer, Service

__all__ = ["Answer", "Limits", "RequestError", "Service"]
