"""What the names in a file of torch.save stand for here: storages and tensors by their place, no data.

Source: torch's serialization (torch/serialization.py, torch/_utils.py) for the meaning of the names;
which others occur in checkpoints: what training frameworks leave in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from runner.errors import quote
from runner.formats.pickle_stream import PickleError
from runner.formats.restricted_pickle import INERT, Call
from runner.formats.safetensors import MAX_BITS, MAX_DIMENSIONS
from runner.tensors import DTYPES, DType, TensorSpec


@dataclass(frozen=True, slots=True)
class StorageType:
    """The class of a storage; its dtype, None for bytes whose dtype the tensor says."""

    dtype: DType | None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes in the file.

    Attributes:
        key: names the run.
        dtype: of its elements; None if the tensors say.
        nbytes: its length.
    """

    key: str
    dtype: DType | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor by its place in a storage.

    Attributes:
        storage: where its data are.
        begin: byte in the storage.
        spec: dtype and shape.
        strides: in elements.
    """

    storage: Storage
    begin: int
    spec: TensorSpec
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one after another, the last dimension fastest."""
        step = 1
        for size, stride in zip(reversed(self.spec.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != step:
                return self.spec.elements == 0
            step *= size
        return True


class Storages:
    """The storages a pickle refers to, by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def persistent(self, value: object) -> Storage:
        """The storage that a persistent id describes."""
        match value:
            case ("storage", StorageType(dtype=dtype), str(key), str(), int(elements)):
                pass
            case ("storage", StorageType(dtype=dtype), str(key), str(), int(elements), None):
                pass
            case ("storage", StorageType(), str(), str(), int(), _):
                raise PickleError("a storage that is part of another one (a file of torch before 0.4)")
            case _:
                raise PickleError("a persistent id that describes no storage")
        if not _is_natural(elements):
            raise PickleError(f"storage {quote(key)} of {elements} elements")
        storage = Storage(key, dtype, elements * dtype.bits // 8 if dtype else elements)
        if self.by_key.setdefault(key, storage) != storage:
            raise PickleError(f"storage {quote(key)} is described twice, differently")
        return storage


def _is_natural(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_BITS


def _rebuild_tensor(arguments: tuple[object, ...]) -> StoredTensor:
    """(storage, offset, shape, strides, and what means nothing to us)."""
    if len(arguments) not in (4, 6, 7):
        raise PickleError("a tensor with the wrong number of arguments")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise PickleError("a tensor without a storage")
    return _tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v3(arguments: tuple[object, ...]) -> StoredTensor:
    """The same for storages of plain bytes: the dtype is the seventh argument."""
    if len(arguments) not in (7, 8):
        raise PickleError("a tensor with the wrong number of arguments")
    storage, offset, shape, strides, _, _, dtype = arguments[:7]
    if not isinstance(storage, Storage) or not isinstance(dtype, DType):
        raise PickleError("a tensor without a storage or dtype")
    return _tensor(storage, dtype, offset, shape, strides)


def _tensor(storage: Storage, dtype: DType, offset: object, shape: object, strides: object) -> StoredTensor:
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        raise PickleError("a tensor whose shape and strides do not fit each other")
    if len(shape) > MAX_DIMENSIONS or not all(map(_is_natural, (offset, *shape, *strides))):
        raise PickleError("a tensor whose offset, shape and strides are not a few natural numbers")
    assert isinstance(offset, int)
    width = dtype.bits // 8
    if math.prod(size for size in shape if size) * dtype.bits >= MAX_BITS:
        raise PickleError(f"a tensor with shape {quote(list(shape))}, which is absurd")
    spec = TensorSpec(dtype.name, shape)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    end = (offset + last + 1) * width if spec.elements else 0
    if end > storage.nbytes:
        raise PickleError(f"a tensor {spec} that needs {end} bytes of a storage of {storage.nbytes}")
    return StoredTensor(storage, offset * width, spec, strides)


def _rebuild_parameter(arguments: tuple[object, ...]) -> object:
    """(tensor, and what means nothing to us)."""
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], StoredTensor):
        raise PickleError("a parameter without a tensor")
    return arguments[0]


def _empty_dict(arguments: tuple[object, ...]) -> dict[str, object]:
    return {}


# Classes of storages by the dtype they hold; newer dtypes have none and are described by bytes.
_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "ComplexFloatStorage": "C64",
}

# Names that stand beside the weights in honest checkpoints. They give nothing, and nothing is called.
_BESIDE = (
    "__builtin__ long",
    "__builtin__ unicode",
    "__builtin__ xrange",
    "_codecs encode",
    "argparse Namespace",
    "builtins bytearray",
    "builtins complex",
    "builtins dict",
    "builtins float",
    "builtins frozenset",
    "builtins int",
    "builtins list",
    "builtins object",
    "builtins range",
    "builtins set",
    "builtins slice",
    "builtins str",
    "builtins tuple",
    "collections Counter",
    "copyreg _reconstructor",
    "datetime datetime",
    "datetime timedelta",
    "lightning.fabric.utilities.data AttributeDict",
    "lightning.pytorch.callbacks.early_stopping EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint ModelCheckpoint",
    "lightning_fabric.utilities.data AttributeDict",
    "numpy dtype",
    "numpy ndarray",
    "numpy._core.multiarray _reconstruct",
    "numpy._core.multiarray scalar",
    "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar",
    "omegaconf.base ContainerMetadata",
    "omegaconf.base Metadata",
    "omegaconf.dictconfig DictConfig",
    "omegaconf.listconfig ListConfig",
    "omegaconf.nodes AnyNode",
    "pathlib Path",
    "pathlib PosixPath",
    "pathlib WindowsPath",
    "pathlib._local PosixPath",
    "pathlib._local WindowsPath",
    "pytorch_lightning.callbacks.early_stopping EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
    "pytorch_lightning.utilities.parsing AttributeDict",
    "torch Size",
    "torch device",
    "typing Any",
)
_PYTHON_2 = {"builtins": "__builtin__", "copyreg": "copy_reg"}  # what a pickle of protocol 2 calls them

_CALLS = {
    "collections OrderedDict": _empty_dict,
    "collections defaultdict": _empty_dict,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch._utils _rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v3": _rebuild_tensor_v3,
    **dict.fromkeys(_BESIDE, lambda arguments: INERT),
}


def _table() -> Mapping[tuple[str, str], object]:
    table: dict[tuple[str, str], object] = {
        ("torch.storage", "UntypedStorage"): StorageType(None),
        **{("torch", name): StorageType(DTYPES[dtype]) for name, dtype in _STORAGES.items()},
        **{("torch", dtype.torch): dtype for dtype in DTYPES.values() if dtype.torch},
    }
    for spelled, function in _CALLS.items():
        module, name = spelled.split()
        for alias in {module, _PYTHON_2.get(module, module)}:
            table[alias, name] = Call(f"{module}.{name}", function)
    return table


NAMES = _table()
