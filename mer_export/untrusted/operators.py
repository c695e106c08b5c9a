"""The operators that a program of a bundle may call: what our exports use, and what computes of the same kind.

Each takes tensors and numbers and gives tensors and numbers. None reads or writes a file, changes a setting of PyTorch,
resizes or re-seats the storage of a tensor, or checks no bounds.
"""

from __future__ import annotations

POINTWISE = """
__and__ __or__ __xor__
abs add addcdiv addcmul bitwise_and bitwise_not bitwise_or ceil clamp clamp_max clamp_min cos div elu eq erf exp expm1
floor floor_divide fmod ge gelu glu gt hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu log log1p log2
logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum mish mul nan_to_num ne neg pow prelu
reciprocal relu remainder round rsqrt rsub selu sigmoid sign silu sin softplus sqrt square sub tan tanh true_divide
trunc where
"""
REDUCTIONS = """
all amax amin any argmax argmin cumprod cumsum linalg_vector_norm log_softmax logsumexp max mean min prod softmax std
sum var
"""
SHAPES = """
arange cat chunk clone constant_pad_nd contiguous detach expand expand_as eye flatten flip full full_like gather index
index_select narrow new_full new_ones new_zeros numel ones ones_like pad permute repeat repeat_interleave reshape roll
select size slice sort split split_with_sizes squeeze stack sym_numel sym_size t tile to topk transpose tril triu
type_as unbind unflatten unsqueeze view view_as zeros zeros_like
"""
NETWORKS = """
_convolution adaptive_avg_pool1d adaptive_avg_pool2d addmm avg_pool1d avg_pool2d baddbmm batch_norm bmm conv1d conv2d
dropout einsum embedding group_norm gru layer_norm linear lstm matmul max_pool1d max_pool2d mm one_hot
scaled_dot_product_attention
"""
ATEN = frozenset(" ".join((POINTWISE, REDUCTIONS, SHAPES, NETWORKS)).split())
