"""Reads the program that torch's compiler has generated: its kernels with their operands, and what it should not do.

The program is Python: a method `call` that allocates buffers and calls kernels, one statement each. A statement that is
not known here counts as a fallback, so that nothing goes unnoticed.
"""

import ast
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["convolution", "matrix product", "attention", "reduction", "pointwise", "own", "fallback"]
KINDS: tuple[Kind, ...] = ("convolution", "matrix product", "attention", "reduction", "pointwise", "own", "fallback")

_LIBRARY: dict[str, Kind] = {
    "convolution": "convolution",
    "mm": "matrix product",
    "addmm": "matrix product",
    "bmm": "matrix product",
    "baddbmm": "matrix product",
    "_scaled_mm": "matrix product",
}
_TRITON: dict[str, Kind] = {"poi": "pointwise", "for": "pointwise", "per": "reduction", "red": "reduction"}
_OURS = "torch.ops.contour."  # custom operators of the engine
# Statements that launch nothing.
_SILENT = (
    "args.clear",
    "assert_",
    "copy_if_misaligned",
    "empty_strided_cuda",
    "get_raw_stream",
    "reinterpret_tensor",
    "torch.cuda.",
)
_HOST = (".item()", "empty_strided_cpu", "aten._local_scalar_dense")


_HALF, _ITEMSIZES = 2, {"float32": 4, "int32": 4, "float64": 8, "int64": 8, "uint8": 1, "bool": 1, "float8_e4m3fn": 1}


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a kernel takes or makes; `name` is that of its buffer."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int = _HALF

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def channels_last(self) -> bool:
        """Whether an image lies in the channels-last layout; sides of length one have no say."""
        _, channels, height, width = self.shape
        dense = (height * width * channels, 1, width * channels, channels)
        return all(n == 1 or have == want for n, have, want in zip(self.shape, self.strides, dense, strict=True))


@dataclass(frozen=True, slots=True)
class Kernel:
    """A call of a kernel: an operator of a library, or a Triton kernel by its name."""

    kind: Kind
    name: str
    operands: tuple[Operand, ...]  # the result last, if an operator's; twice, if a Triton kernel changes it in place


@dataclass(eq=False)
class Program:
    """A generated program, read."""

    code: str
    kernels: list[Kernel] = field(default_factory=list)
    host_values: list[str] = field(default_factory=list)  # statements for which the host waits, or computes
    sources: dict[str, str] = field(default_factory=dict)  # of its Triton kernels by name
    _tensors: dict[str, Operand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tree = ast.parse(self.code)
        self.sources = dict(_sources(tree))
        (call,) = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name == "call"]
        statements = [each for each in ast.walk(call) if isinstance(each, ast.Assign | ast.Expr)]
        for statement in statements:
            self._note_tensor(statement)
        for statement in statements:
            if isinstance(statement.value, ast.Call):
                self._read(statement, statement.value)

    @property
    def counts(self) -> Counter[Kind]:
        return Counter(kernel.kind for kernel in self.kernels)

    @property
    def fallbacks(self) -> list[str]:
        """What runs as an operator that the compiler has no code for."""
        return [kernel.name for kernel in self.kernels if kernel.kind == "fallback"]

    def other_layouts(self) -> list[Kernel]:
        """Convolutions that take or make an image, or take weights, in another layout than channels last."""
        return [each for each in self.kernels if each.kind == "convolution" and not _in_channels_last(each)]

    def layout_copies(self) -> list[Kernel]:
        """Kernels that only copy what a convolution made, or what one takes."""
        beside = {x.name for kernel in self.kernels if kernel.kind == "convolution" for x in kernel.operands}
        return [each for each in self.copies() if any(x.name in beside for x in each.operands)]

    def copies(self) -> list[Kernel]:
        """Kernels that compute nothing."""
        return [each for each in self.kernels if each.name in self.sources and only_copies(self.sources[each.name])]

    def _note_tensor(self, statement: ast.Assign | ast.Expr) -> None:
        """The shape of a buffer, where a statement tells it: an allocation, a view, or an assertion."""
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name() | ast.Call() as value):
                tensor = self._tensor(name, value)
            case ast.Expr(value=ast.Call(args=[ast.Name(id=name), *_]) as call) if _name(call) == "assert_size_stride":
                shape, strides = map(ast.literal_eval, call.args[1:3])
                known = self._tensors.get(name)
                tensor = Operand(name, shape, strides, known.itemsize if known else _HALF)
            case _:
                return
        if tensor is not None:
            self._tensors[name] = tensor

    def _tensor(self, name: str, value: ast.Name | ast.Call) -> Operand | None:
        """What a name stands for when it is set to another buffer, a view of one, or a new one; None if to none."""
        match value:
            case ast.Name(id=other) if other in self._tensors:
                return replace(self._tensors[other], name=name)
            case ast.Call(args=[ast.Name(id=other), shape, strides, *_]) if _name(value) == "reinterpret_tensor":
                itemsize = self._tensors[other].itemsize if other in self._tensors else _HALF
                return Operand(name, ast.literal_eval(shape), ast.literal_eval(strides), itemsize)
            case ast.Call(args=[shape, strides, dtype, *_]) if _name(value).startswith("empty_strided_"):
                itemsize = _ITEMSIZES.get(ast.unparse(dtype).rpartition(".")[2], _HALF)
                return Operand(name, ast.literal_eval(shape), ast.literal_eval(strides), itemsize)
        return None

    def _read(self, statement: ast.Assign | ast.Expr, call: ast.Call) -> None:
        name, made = _name(call), [*statement.targets] if isinstance(statement, ast.Assign) else []
        if any(mark in ast.unparse(call) for mark in _HOST) or name.startswith("cpp_"):
            self.host_values.append(ast.unparse(statement))
        elif not name.startswith(_SILENT):
            operands = [*self._operands([*call.args, *(each.value for each in call.keywords), *made])]
            name, kind = name.removesuffix(".run"), _kind(name)
            operands += [operands[place] for place in _in_place(self.sources.get(name, ""))]
            self.kernels.append(Kernel(kind, name, tuple(operands)))

    def _operands(self, arguments: Sequence[ast.expr]) -> Iterator[Operand]:
        for argument in arguments:
            match argument:
                case ast.Name(id=name) if name in self._tensors:
                    yield self._tensors[name]
                case ast.Call(args=[ast.Name(id=name), *_]):
                    view = self._tensor(name, argument)
                    yield from () if view is None else (view,)


def _in_channels_last(convolution: Kernel) -> bool:
    """Whether all three images are known and in that layout: what it takes, its weights, and what it makes."""
    images = [x for x in convolution.operands if len(x.shape) == 4]
    return len(images) == 3 and all(x.channels_last for x in images)


def _name(call: ast.Call) -> str:
    """The function that is called, as in "extern_kernels.mm"."""
    return ast.unparse(call.func)


def _kind(name: str) -> Kind:
    library, _, rest = name.partition(".")
    if library == "extern_kernels":
        return _LIBRARY.get(rest, "fallback")
    if rest == "run":
        triton, _, rest = name.removesuffix(".run").partition("_")
        return _TRITON.get(rest[:3], "fallback") if triton == "triton" else "own"
    if "attention" in name:
        return "attention"
    return "own" if name.startswith(_OURS) else "fallback"


def _sources(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The Triton kernels that a program defines, by name."""
    for statement in tree.body:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Call(args=[_, ast.Constant(value=str(source)), *_]) as call
            ) if _name(call) == "async_compile.triton":
                yield name, source


def _in_place(source: str) -> list[int]:
    """Which arguments of a Triton kernel it changes."""
    functions = (each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef))
    return [n for each in functions for n, arg in enumerate(each.args.args) if arg.arg.startswith("in_out_ptr")]


def only_copies(source: str) -> bool:
    """Whether a Triton kernel stores nothing but what it has loaded."""
    loaded, stored = set[str](), list[str]()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_load(value):
                loaded.add(name)
            case ast.Call(args=[_, value, *_]) if _name(node) == "tl.store":
                stored.append(ast.unparse(value))
    return bool(stored) and set(stored) <= loaded


def _is_load(value: ast.expr) -> bool:
    """As in "tl.load(in_ptr0 + x0, None).to(tl.float32)"."""
    match value:
        case ast.Call(func=ast.Attribute(value=inner, attr="to")):
            return _is_load(inner)
        case ast.Call():
            return _name(value) == "tl.load"
    return False
