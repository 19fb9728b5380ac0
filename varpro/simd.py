"""Rows of eight float64 as one value inside compiled functions.

The factorisation in :mod:`varpro.solvers.circle` carries an 8 x 8 matrix from neuron to neuron. Held as eight values of
this type it lives in vector registers (one 512-bit or two 256-bit registers a row); held as an array, every step
waits for memory. LLVM splits the type where the processor's registers are narrower.


Only compiled code can hold a ``Row8``; the functions below are its whole arithmetic.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

_ROW = ir.VectorType(ir.DoubleType(), 8)
_CONTRACT = ("contract",)  # a product and the sum that follows may become one fused multiply-add


class Row8Type(types.Type):
    """The numba type of eight float64."""

    def __init__(self) -> None:
        super().__init__(name="Row8")


row8 = Row8Type()


@register_model(Row8Type)
class _Row8Model(models.PrimitiveModel):
    def __init__(self, manager, numba_type) -> None:
        super().__init__(manager, numba_type, _ROW)


def _pick(builder, vector, lanes):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, vector, mask)


def _row_pointer(context, builder, signature, args):
    array_type = signature.args[0]
    array = context.make_array(array_type)(context, builder, args[0])
    place = [args[1], context.get_constant(types.intp, 0)]
    pointer = cgutils.get_item_pointer(context, builder, array_type, array, place, wraparound=False)
    return builder.bitcast(pointer, _ROW.as_pointer())


@intrinsic
def load(typing_context, array, k):
    """Row k of a C-contiguous float64 array (M, 8)."""

    def generate(context, builder, signature, args):
        value = builder.load(_row_pointer(context, builder, signature, args))
        value.align = 8
        return value

    return row8(array, types.intp), generate


@intrinsic
def store(typing_context, array, k, row):
    """Write ``row`` into row k of a C-contiguous float64 array (M, 8)."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _row_pointer(context, builder, signature, args), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, row8), generate


@intrinsic
def splat(typing_context, value):
    """The row (value, ..., value)."""

    def generate(context, builder, signature, args):
        first = builder.insert_element(ir.Constant(_ROW, ir.Undefined), args[0], ir.IntType(32)(0))
        return _pick(builder, first, [0] * 8)

    return row8(types.float64), generate


@intrinsic
def lane(typing_context, row, index):
    """The row (row[index], ..., row[index]); ``index`` is a literal 0..7."""
    if not isinstance(index, types.IntegerLiteral):
        return None
    position = index.literal_value

    def generate(context, builder, signature, args):
        return _pick(builder, args[0], [position] * 8)

    return row8(row8, index), generate


@intrinsic
def madd(typing_context, a, b, c):
    """a * b + c, lane by lane."""

    def generate(context, builder, signature, args):
        product = builder.fmul(args[0], args[1], flags=_CONTRACT)
        return builder.fadd(product, args[2], flags=_CONTRACT)

    return row8(row8, row8, row8), generate


def _lanewise(instruction: str):
    """Signature and code generator of a two-argument instruction of the LLVM builder."""

    def generate(context, builder, signature, args):
        return getattr(builder, instruction)(args[0], args[1])

    return row8(row8, row8), generate


@intrinsic
def add(typing_context, a, b):
    """a + b, lane by lane."""
    return _lanewise("fadd")


@intrinsic
def sub(typing_context, a, b):
    """a - b, lane by lane."""
    return _lanewise("fsub")


@intrinsic
def mul(typing_context, a, b):
    """a * b, lane by lane."""
    return _lanewise("fmul")


@intrinsic
def dot(typing_context, a, b):
    """Sum of a * b over the eight lanes, added pairwise."""

    def generate(context, builder, signature, args):
        part = builder.fmul(args[0], args[1])
        for width in (4, 2, 1):
            low = _pick(builder, part, range(width))
            high = _pick(builder, part, range(width, 2 * width))
            part = builder.fadd(low, high)
        return builder.extract_element(part, ir.IntType(32)(0))

    return types.float64(row8, row8), generate
