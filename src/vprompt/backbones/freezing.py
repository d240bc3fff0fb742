"""A backbone's flags and modes before it was frozen, to be restored."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn


class Original:
    """The parameters of a backbone that wanted gradients, and its modules in training mode.

    Models over the same backbone share one, taken when the first of them froze it; it is restored once.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.wanted_gradients = {name: p.requires_grad for name, p in backbone.named_parameters()}
        self.was_training = {name: module.training for name, module in backbone.named_modules()}
        self.restored = False

    @staticmethod
    def of(backbone: nn.Module) -> Original:
        """The state of a backbone now, or before the first model that is still attached to it."""
        if backbone not in _attached:
            _attached[backbone] = Original(backbone)
        return _attached[backbone]

    def restore(self, backbone: nn.Module) -> None:
        """Gives a backbone its flags and modes back; does nothing a second time."""
        if self.restored:
            return
        self.restored = True
        _attached.pop(backbone, None)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self.wanted_gradients.get(name, parameter.requires_grad))
        for name, module in backbone.named_modules():
            module.training = self.was_training.get(name, module.training)


_attached: WeakKeyDictionary[nn.Module, Original] = WeakKeyDictionary()
