"""A device in words only: its tensors are computed on the host, and every wait for it is counted.

    with Elsewhere() as device:
        x = device.put(torch.randn(4, 2))
        ...
    assert device.waits == []

The stand-in is called ``meta``, a device for which PyTorch runs autograd without a driver. Inside
the context every tensor of that device is an ``Away``, which holds its values on the host; outside
it, ``host`` reads one back. As on a GPU, an operation raises if it mixes devices, except that a
0-dim tensor of the host may take part anywhere. What would make the host wait is listed in
``waits``: reading a value or a shape that depends on values, and copying from the host unless
``non_blocking``, which PyTorch follows by a synchronisation.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
    aten._linalg_eigh.default,
    aten.linalg_cholesky_ex.default,
}
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}


class Away(Tensor):
    """A tensor of the stand-in device, whose values are ``inner``, a tensor of the host."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        assert not isinstance(inner, Away)
        self.inner = inner

    def __repr__(self) -> str:
        return f"Away({self.inner})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        found = Away(self.inner.clone()).requires_grad_(self.requires_grad)
        return torch.nn.Parameter(found) if isinstance(self, torch.nn.Parameter) else found

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the stand-in device outside its context")


class Mixed(AssertionError):
    """An operation on tensors of two devices."""


class Elsewhere(TorchDispatchMode):
    """The context of the stand-in device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def put(self, value: Any) -> Any:
        """A tensor, or the parameters and buffers of a module in place, on the device."""
        if isinstance(value, torch.nn.Module):
            for module in value.modules():
                for name, p in module._parameters.items():
                    if p is not None:
                        away = Away(p.detach().clone())
                        module._parameters[name] = torch.nn.Parameter(away, p.requires_grad)
                for name, b in module._buffers.items():
                    module._buffers[name] = None if b is None else Away(b.clone())
            return value
        return Away(value.detach().clone())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat, _ = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        away = [value for value in tensors if isinstance(value, Away)]
        named = kwargs.get("device")
        target = None if named is None else torch.device(named)
        if any(t.device == DEVICE and not isinstance(t, Away) for t in tensors):
            self.waits.append(f"torch.tensor(..., device=...) waits\n{_where()}")
            raise Mixed(f"{func}: torch.tensor(..., device=x.device) copies from the host")
        if not away and target != DEVICE:
            return func(*args, **kwargs)
        self._check(func, args, kwargs, away, tensors, target)
        if target == DEVICE:
            if isinstance(kwargs.get("generator"), torch.Generator):
                raise Mixed(f"{func}: a generator of the host for a tensor of the device")
            kwargs["device"] = torch.device("cpu")
        if func is aten._fused_sdp_choice.default:
            return 0  # the kernel that every device has
        inside = tree_map(lambda v: v.inner if isinstance(v, Away) else v, (args, kwargs))
        found = func(*inside[0], **inside[1])
        to_host = func is aten._to_copy.default and target is not None and target != DEVICE
        on_host = func is aten.copy_.default and not isinstance(args[0], Away)
        if to_host or on_host:
            return found if to_host else args[0]
        out = tree_map(lambda v: Away(v) if isinstance(v, Tensor) else v, found)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _check(
        self, func: Any, args: Any, kwargs: Any, away: Any, tensors: Any, target: Any
    ) -> None:
        """Raise Mixed for two devices, and list what waits."""
        hosts = [t for t in tensors if not isinstance(t, Away)]
        if func in COPIES:
            source = args[-1] if func is aten.copy_.default else args[0]
            source = args[1] if func is aten.copy_.default else source
            to = DEVICE if func is aten.copy_.default and isinstance(args[0], Away) else target
            to = source.device if to is None else to
            if source.device != to:
                free = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
                if to == DEVICE and not free:
                    self.waits.append(f"a copy from the host\n{_where()}")
                if to != DEVICE:
                    if free:
                        raise Mixed("a copy to the host that nobody waits for holds no values yet")
                    self.waits.append(f"a copy to the host\n{_where()}")
            return
        if func in INDEXING:
            indices = [i for i in args[1] if i is not None]
            if not isinstance(args[0], Away):
                raise Mixed(f"{func}: a tensor of the host indexed by one of the device")
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                self.waits.append(f"a mask as an index\n{_where()}")
            if any(not isinstance(i, Away) and i.ndim for i in indices):
                self.waits.append(f"an index of the host\n{_where()}")
            hosts = [t for t in hosts if not any(t is i for i in indices)]
        if func in READS:
            self.waits.append(f"{func}\n{_where()}")
        if away and any(t.ndim for t in hosts):
            shapes = [tuple(t.shape) for t in hosts]
            raise Mixed(f"{func} mixes the device with tensors of the host of shape {shapes}")


def host(value: Tensor) -> Tensor:
    """The values of a tensor of the device, without counting a wait."""
    found = value.detach()
    assert isinstance(found, Away), f"a tensor on {found.device}, not on the device"
    return found.inner


def _where() -> str:
    """The lines of the package that led here, the last three."""
    frames = [f for f in traceback.extract_stack() if "/scoresde/" in f.filename]
    return "\n".join(
        f"  {f.filename.rpartition('/scoresde/')[2]}:{f.lineno} {f.line}" for f in frames[-3:]
    )
