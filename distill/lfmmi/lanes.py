"""Vectors of eight numbers for functions that numba compiles.

numba does not see that eight neighbouring sums are one instruction of the processor, so here they are a type, with the
few operations that :mod:`distill.lfmmi.numba_loop` needs. Arrays have no gaps, and indices are not checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 8


class Vector(types.Type):
    """LANES numbers of one floating type."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        number = ir.FloatType() if vector.dtype.bitwidth == 32 else ir.DoubleType()
        super().__init__(manager, vector, ir.VectorType(number, LANES))


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any, step: int) -> Any:
    """Address of element ``index * step`` of an array without gaps."""
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.gep(data, [builder.mul(index, ir.Constant(index.type, step))])


@intrinsic
def at(typing: Any, array: Any, index: Any) -> Any:
    """array[index] of an array without gaps, unchecked."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_place(context, builder, array, args[0], args[1], 1))

    return array.dtype(array, types.intp), code


@intrinsic
def load(typing: Any, array: Any, row: Any) -> Any:
    """The vector array[row] of an array (N, LANES)."""
    vector = Vector(array.dtype)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, array, args[0], args[1], LANES)
        place = builder.bitcast(place, context.get_value_type(vector).as_pointer())
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, row: Any, vector: Any) -> Any:
    """array[row] = vector."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, array, args[0], args[1], LANES)
        place = builder.bitcast(place, context.get_value_type(vector).as_pointer())
        builder.store(args[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """A vector of zeros of an array's type."""
    vector = Vector(array.dtype)
    return vector(array), lambda context, builder, signature, args: context.get_constant_null(vector)


def _elementwise(operation: str) -> Any:
    @intrinsic
    def of_two(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if operation == "maximum":
                return builder.select(builder.fcmp_unordered(">", *args), *args)
            if operation == "smallest":
                positive = builder.fcmp_ordered(">", args[1], ir.Constant(args[1].type, None))
                less = builder.fcmp_ordered("<", args[1], args[0])
                return builder.select(builder.and_(positive, less), args[1], args[0])
            return getattr(builder, operation)(*args, flags=("contract",))

        return a(a, b), code

    return of_two


add, times, maximum = _elementwise("fadd"), _elementwise("fmul"), _elementwise("maximum")
smallest = _elementwise("smallest")  # the smaller one, where the second is above 0


@intrinsic
def wide(typing: Any, vector: Any) -> Any:
    """The vector in double precision."""
    double = Vector(types.float64)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0] if vector == double else builder.fpext(args[0], context.get_value_type(double))

    return double(vector), code


@intrinsic
def plus_times(typing: Any, total: Any, factor: Any, vector: Any) -> Any:
    """total + factor * vector, with the same factor for all."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[2].type
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), args[1], ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        factors = builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), order)
        return builder.fadd(args[0], builder.fmul(factors, args[2], flags=("contract",)), flags=("contract",))

    return total(total, total.dtype, vector), code
