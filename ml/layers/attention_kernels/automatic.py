"""The kernel that suits the device, the dtype and the mask."""

from torch import Tensor

from ml.config import configurable
from ml.layers.attention_kernels.blocks import BLOCK_SIZE
from ml.layers.attention_kernels.blockwise import BlockwiseAttention
from ml.layers.attention_kernels.dot_product import DotProductAttention, needs_mask
from ml.layers.attention_kernels.flex import FlexAttention
from ml.layers.attention_kernels.kernel import AttentionKernel, AttentionTask, Weighting, task_of
from ml.layers.attention_kernels.visibility import mean_visible_keys
from ml.layers.context import Context

DOT_PRODUCT, FLEX, BLOCKWISE = DotProductAttention(), FlexAttention(), BlockwiseAttention()


@configurable
class AutomaticAttention(AttentionKernel):
    """The fastest kernel for the device, the dtype and the mask; the dry run and the log say which.

    On a GPU: torch's `scaled_dot_product_attention` without a mask, FlexAttention with one, and blocks of queries where
    neither computes what is asked. On a CPU: `scaled_dot_product_attention`, or blocks of queries where they are faster
    (`benchmarks/attention_kernels.py`).
    """

    def chosen(self, task: AttentionTask) -> AttentionKernel:
        if task.device in (None, "cpu"):
            return _on_cpu(task)
        is_prompt = task.num_queries != task.num_keys and not task.needs_gradient  # of any length: nothing to compile
        kernels = (DOT_PRODUCT, BLOCKWISE) if is_prompt else (DOT_PRODUCT, FLEX, BLOCKWISE)
        return next(kernel for kernel in kernels if kernel.obstacle(task) is None)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        kernel = self.chosen(task_of(query, key, value, weighting))
        return kernel.attend(query, key, value, weighting, context)


def _on_cpu(task: AttentionTask) -> AttentionKernel:
    if DOT_PRODUCT.obstacle(task) is not None:
        return BLOCKWISE
    if task.dropout:
        return DOT_PRODUCT
    has_no_kernel = task.head_size != task.value_head_size  # torch then stores all scores
    return BLOCKWISE if has_no_kernel or _is_mostly_hidden(task) else DOT_PRODUCT


def _is_mostly_hidden(task: AttentionTask) -> bool:
    """True where blocks of queries, which read fewer keys than a mask hides, are faster on a CPU.

    A block takes the time of the keys that it reads and of about 250 more; with a mask each key takes three quarters of
    that time (measured in float32 and bfloat16 by `benchmarks/attention_kernels.py`). Documents count as a quarter of a
    row.
    """
    if task.num_keys is None or task.num_queries == 1 or not needs_mask(task):
        return False
    visible = mean_visible_keys(task.num_keys, task.causal, task.window_size)
    if task.has_documents:
        visible /= 4
    return visible + BLOCK_SIZE / 2 + 250 <= 0.75 * task.num_keys
