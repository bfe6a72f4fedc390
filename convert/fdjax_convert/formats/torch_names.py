"""The names that a file of `torch.save` may use, and what stands for each of them.

They are the names that torch's own loader takes with `weights_only=True`
(torch/_weights_only_unpickler.py of torch 2.13). No name is imported: a stand-in
answers in its place, with the values that a checkpoint is made of.
"""

import codecs
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from fdjax.checkpoint.mapped import MappedFile, c_strides
from fdjax.checkpoint.tensors import LazyTensor
from fdjax_convert.formats.pickle_machine import checked_key
from fdjax_convert.formats.values import Callee, Unreadable, WithState, brief

_MAX_AXES = 64  # as many as numpy has
_MAX_INT = (1 << 63) - 1
_MAX_EXPANDED = 64 << 20
# Bytes that a tensor may have beyond those of its storage. Axes of stride 0 repeat
# values: published files have small ones, hostile ones fill any memory with them.

_TENSOR_BYTES = 40  # torch takes about a hundred for a tensor with its key

_STORAGES: dict[str, Any] = {
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    # Their tensors are not read, but stand beside others that are.
    "QInt8Storage": np.int8,
    "QUInt8Storage": np.uint8,
    "QInt32Storage": np.int32,
    "QUInt4x2Storage": np.uint8,
    "QUInt2x4Storage": np.uint8,
}

_DTYPES: dict[str, Any] = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}

_CONSTANTS = (
    *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
    *(f"torch.bits{kind}" for kind in ("8", "16", "1x8", "2x4", "4x2")),
    *(f"torch.{kind}" for kind in ("qint8", "quint8", "qint32", "quint4x2")),
    *(f"torch.{kind}" for kind in ("quint2x4", "complex32", "float4_e2m1fn_x2")),
    *(f"torch.per_tensor_{kind}" for kind in ("affine", "symmetric")),
    *(f"torch.per_channel_{kind}" for kind in ("affine", "symmetric")),
    "torch.per_channel_affine_float_qparams",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.storage.TypedStorage",
)
"""Names of types and kinds: they may stand in a file and are not called."""

_TENSOR_CLASSES = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long")
_PLACES = ("torch.", "torch.cuda.", "torch.sparse.", "torch.cuda.sparse.")


class Storage:
    """A storage: where its bytes are.

    Attributes:
        file: The file.
        start: Its first byte.
        length: How many bytes it has.
        dtype: Element type.
    """

    __slots__ = ("dtype", "file", "length", "start")

    def __init__(self, file: MappedFile, start: int, length: int, dtype: np.dtype):
        self.file, self.start, self.length, self.dtype = file, start, length, dtype


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> LazyTensor | Unreadable:
    """`torch._utils._rebuild_tensor` and `_v2`: a strided view of a storage."""
    # _v2: requires_grad, backward hooks, metadata. A negated or conjugated tensor
    # keeps the plain values in its storage and a flag in the metadata.
    return _flagged(storage, storage, offset, size, stride, rest[2:])


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    *metadata: Any,
) -> LazyTensor | Unreadable:
    """`torch._utils._rebuild_tensor_v3`: the view has a dtype of its own."""
    return _flagged(storage, dtype, offset, size, stride, metadata)


def _flagged(
    storage: Any, typed: Any, offset: Any, size: Any, stride: Any, flags: Any
) -> LazyTensor | Unreadable:
    view = _view(storage, typed, offset, size, stride)
    return Unreadable("a negated or conjugated tensor") if flags and flags[0] else view


def _view(storage: Any, typed: Any, offset: Any, size: Any, stride: Any) -> LazyTensor:
    dtype = getattr(typed, "dtype", None)
    if not (
        isinstance(storage, Storage)
        and isinstance(dtype, np.dtype)
        and isinstance(size, tuple | list)
        and isinstance(stride, tuple | list)
        and len(size) == len(stride) <= _MAX_AXES
        and all(
            type(number) is int and 0 <= number <= _MAX_INT
            for number in (offset, *size, *stride)
        )
    ):
        raise pickle.UnpicklingError("holds a tensor whose sizes cannot be")
    size, stride = tuple(size), tuple(stride)
    count = 1
    last = 0
    for length, step in zip(size, stride, strict=True):
        count *= length
        last += (length - 1) * step
    end = (offset + last + 1) * dtype.itemsize if count else 0
    if end > storage.length:
        raise pickle.UnpicklingError(
            f"holds a tensor that ends at byte {end} of a storage of {storage.length}"
        )
    if count * dtype.itemsize > storage.length + _MAX_EXPANDED:
        raise pickle.UnpicklingError(
            f"holds a tensor of {count} elements in a storage of {storage.length} bytes"
        )
    contiguous = not count or stride == c_strides(size)
    start = storage.start + (offset * dtype.itemsize if count else 0)
    return storage.file.tensor(start, dtype, size, None if contiguous else stride)


def _first(value: Any, *rest: Any) -> Any:
    """`torch._utils._rebuild_parameter` and its kin: the tensor itself."""
    return value


def _unreadable(what: str) -> Callable[..., Unreadable]:
    return lambda *arguments: Unreadable(what)


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with Python attributes."""
    if type(function) is not Callee or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError(f"calls {brief(function)}")
    if function.name == "torch._tensor._rebuild_from_type_v2":
        raise pickle.UnpicklingError("calls a function with itself")
    return function(*arguments)


def _dict(items: Any = ()) -> WithState:
    """`collections.OrderedDict` of pairs, `collections.Counter` of a dict."""
    pairs = items.items() if isinstance(items, dict) else items
    return WithState((checked_key(key), value) for key, value in pairs)


def _encode(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`: how protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "ascii", "utf-8"):
        raise pickle.UnpicklingError(f"encodes {brief(text)} as {brief(encoding)}")
    return codecs.encode(text, encoding)


def _bytearray(*arguments: Any) -> bytearray:
    """`builtins.bytearray` of bytes, or of a text and its encoding; never a length."""
    match arguments:
        case ():
            return bytearray()
        case (bytes() as data,):
            return bytearray(data)
        case (text, encoding):
            return bytearray(_encode(text, encoding))
    raise pickle.UnpicklingError(f"makes a bytearray of {brief(arguments)}")


def _device(*names: Any) -> str:
    return ":".join(brief(name) for name in names)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _unreadable("an array of numpy"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable(
        "a meta tensor, which has no values"
    ),
    "torch._utils._rebuild_nested_tensor": _unreadable("a nested tensor"),
    "torch._utils._rebuild_qtensor": _unreadable("a quantised tensor of torch"),
    "torch._utils._rebuild_sparse_tensor": _unreadable("a sparse tensor"),
    "torch._utils._rebuild_wrapper_subclass": _unreadable("a tensor of a subclass"),
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.serialization._get_layout": brief,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": _device,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.set": lambda items=(): set(map(checked_key, items)),
    "builtins.complex": lambda real=0, imaginary=0: complex(real, imaginary),
}


def _allowed() -> dict[str, Callee]:
    names = [
        Callee(name, call, cost=_TENSOR_BYTES if "_rebuild" in name else 0)
        for name, call in _CALLS.items()
    ]
    names += [Callee(name) for name in _CONSTANTS]
    names += [
        Callee(f"{place}{kind}Tensor")
        for place in _PLACES
        for kind in (*_TENSOR_CLASSES, "Short", "Bool")
        if kind != "Bool" or "sparse" not in place
    ]
    typed = {f"torch.{name}": dtype for name, dtype in (_DTYPES | _STORAGES).items()}
    typed |= {
        f"torch.cuda.{name}": dtype
        for name, dtype in _STORAGES.items()
        if not name.startswith("Q")
    }
    typed["torch.storage.UntypedStorage"] = np.uint8
    names += [Callee(name, dtype=np.dtype(dtype)) for name, dtype in typed.items()]
    return {one.name: one for one in names}


ALLOWED = _allowed()
"""What stands for each name that a file may use."""
