"""Visual prompt tuning as a method of PEFT, on models of transformers; importing it registers the method."""

from vprompt.peft.bridge import VPTConfig as VPTConfig
from vprompt.peft.bridge import to_vprompt as to_vprompt
