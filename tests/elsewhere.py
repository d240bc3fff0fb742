"""A device that is none: its tensors say that they lie on `cuda` and are computed on the CPU, with their real values.

As on a GPU, a tensor of another device is an error in all but a few operations. Unlike fake tensors these have numbers,
so that what depends on them (clusters, choices, checks for NaN) runs as well; and what would make the CPU wait for the
device is counted.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Take indices on the CPU, which are then copied."""
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
}
"""Operations whose result has to be known to the CPU."""


def _indices(index):
    """Lists of numbers as tensors, as which torch has them."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(index) if isinstance(index, list) else index


class Elsewhere(torch.Tensor):
    """A tensor that claims to lie on `DEVICE`."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",  # torch's own code then looks for no driver; Python is told of `DEVICE`
        )

    def __init__(self, held):
        self.held = held

    @property
    def device(self):
        return DEVICE

    @property
    def is_meta(self):
        return False

    @property
    def is_cuda(self):
        return True

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to:  # where it is already, it is not copied
            args, kwargs = tree_map_only(torch.device, _inner, (_named(args), kwargs or {}))
        elif func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _indices(args[1]), *args[2:])
        elif func == torch.Tensor.data.__set__:
            if not isinstance(args[0], Elsewhere) or not isinstance(args[1], Elsewhere):
                raise RuntimeError("data of another device")
            args[0].held = args[1].held
        elif func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], **{"dtype": args[0].dtype, "device": DEVICE, **(kwargs or {})})
        elif func in (torch.Tensor.tolist, torch.Tensor.numpy):
            return getattr(args[0].cpu(), func.__name__)()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo):
        twin = Elsewhere(self.held.clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            twin._is_param = True
        return memo.setdefault(id(self), twin)

    def __repr__(self, *, tensor_contents=None):
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of `OtherDevice`")


def _is_other(device):
    return device is not None and torch.device(device).type in (DEVICE.type, "meta")


def _inner(device):
    return torch.device("meta") if device.type == DEVICE.type else device


def _named(args):
    return tuple(torch.device(x) if isinstance(x, str) else x for x in args)


class _Generator(torch.Generator):
    """One on the CPU that may claim to be on `DEVICE`."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.elsewhere = _is_other(device)
        return made


def _enter_no_grad(mode):
    mode.within = torch.no_grad()
    mode.within.__enter__()


def _exit_no_grad(mode, *error):
    mode.within.__exit__(*error)


def _jvp(function, primals, tangents, jvp=torch.func.jvp):
    """On the CPU alone: forward derivatives and a mode that makes tensors do not go together."""
    assert not any(isinstance(x, Elsewhere) for x in (*primals, *tangents))
    with _disable_current_modes():
        return jvp(function, primals, tangents)


class OtherDevice(TorchDispatchMode):
    """Inside, `DEVICE` is there.

    Attributes:
        doubles: Whether it has float64, as Apple's GPUs have not.
        waits: How often each operation made the CPU wait.
        pinned: How many tensors were copied to memory that the device reads by itself.
    """

    def __init__(self):
        super().__init__(_dispatch_key=None)
        # As fake tensors do: nothing looks for a driver then.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        torch._C._ensureCUDADeviceGuardSet()
        self.doubles = True
        self.waits = Counter()
        self.pinned = 0

    def __enter__(self):
        self._lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # Parameters that move stay the objects that they are, as between devices that are there.
        self._swapping = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        self._before = torch.func.jvp, torch.Generator
        torch.func.jvp, torch.Generator = _jvp, _Generator
        # Tensors that are wrapped have no views in inference mode.
        self._inference = torch.inference_mode.__enter__, torch.inference_mode.__exit__
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = _enter_no_grad, _exit_no_grad
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self._lifting)
        torch.__future__.set_swap_module_params_on_conversion(self._swapping)
        torch.func.jvp, torch.Generator = self._before
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = self._inference
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat, _ = tree_flatten((args, kwargs))
        here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)]
        there = [x for x in flat if isinstance(x, Elsewhere)]
        assert all(x.device.type == "cpu" for x in here), f"{func}: a tensor without numbers"
        if func is aten._pin_memory.default:
            self.pinned += 1
            return args[0].clone()
        if func is aten.is_pinned.default:
            return False
        if func in COPIES:
            return self._copied(func, args, kwargs)
        target = kwargs.get("device")
        if there and func not in INDEXED and any(x.ndim for x in here):
            raise RuntimeError(f"{func}: tensors on {DEVICE} and on the CPU, {[tuple(x.shape) for x in here]}")
        if there and func in INDEXED and (not isinstance(args[0], Elsewhere) or (here and here[-1] is args[-1])):
            raise RuntimeError(f"{func}: tensors on {DEVICE} and on the CPU")
        if there and here and not any(x.ndim for x in there) and func not in INDEXED and any(x.ndim for x in here):
            raise RuntimeError(f"{func}: a tensor on the CPU and a number on {DEVICE}")
        generators = [x for x in flat if isinstance(x, torch._C.Generator)]
        other = bool(there) if target is None else _is_other(target)
        if other and any(not getattr(x, "elsewhere", False) for x in generators):
            raise RuntimeError(f"{func}: random numbers on {DEVICE} from a generator on the CPU")
        if there and func in WAITS:
            self.waits[str(func)] += 1
        if there and func in INDEXED and any(x.ndim for x in here):
            self.waits["copy of an index"] += 1
        if there and func in INDEXED and any(x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None):
            self.waits["mask as an index"] += 1
        if _is_other(target):
            kwargs["device"] = torch.device("cpu")
        out = func(*_unwrapped(args), **_unwrapped(kwargs))
        if other:
            self._check_doubles(func, out)
        return _results(func, out, flat, args, kwargs) if other else out

    def _check_doubles(self, func, out):
        tensors = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        if not self.doubles and any(x.dtype == torch.float64 for x in tensors):
            raise TypeError(f"{func}: {DEVICE} has no float64")

    def _copied(self, func, args, kwargs):
        blocking = not kwargs.pop("non_blocking", False)
        if func is aten.copy_.default:
            into, source = args[:2]
            if isinstance(source, Elsewhere) != isinstance(into, Elsewhere):
                self._count(isinstance(into, Elsewhere), not (len(args) > 2 and args[2]) and blocking)
            func(*_unwrapped(args[:2]))
            return into
        was = isinstance(args[0], Elsewhere)
        becomes = was if kwargs.get("device") is None else _is_other(kwargs["device"])
        if was != becomes:
            self._count(becomes, blocking)
        kwargs.pop("device", None)
        kwargs.pop("pin_memory", None)
        out = func(*_unwrapped(args), **kwargs)
        if becomes:
            self._check_doubles(func, out)
        return Elsewhere(out) if becomes else out

    def _count(self, to_device, blocking):
        if blocking:
            self.waits["copy to the device" if to_device else "copy to the CPU"] += 1


def _unwrapped(tree):
    return tree_map_only(Elsewhere, lambda x: x.held, tree)


def _results(func, out, flat, args, kwargs):
    """What came out, wrapped; the same object where an argument was changed in place."""
    wrappers = {id(x.held): x for x in flat if isinstance(x, Elsewhere)}

    def wrapped(x):
        return wrappers.get(id(x)) if id(x) in wrappers else Elsewhere(x)

    return tree_map_only(torch.Tensor, wrapped, out)
