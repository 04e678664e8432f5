"""row_products: products of hidden states with a few rows of weights, to the last bit the same in any company.

Shape letters: see gptj_batch.engine. Here S is the rows, and K the rows of weights: labels, classes, ends of a span.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def row_products(rows: Tensor, weights: Tensor, biases: Tensor | None = None) -> Tensor:
    """Multiply every row with every row of weights, in float32.

    On a CPU each sum is made by itself. A matrix product with so few columns sums a row in another order when it is
    alone, or among the last few that fill no vector: then a label's score, and the text of a near tie, would depend on
    which rows came along. Beside the model's own products this costs nothing.

    rows: (S, E)    weights: (K, E)    biases: (K,)    returns: (S, K), float32
    """
    rows, weights = rows.float(), weights.float()
    if rows.device.type != "cpu":
        return F.linear(rows, weights, None if biases is None else biases.float())
    products = torch.stack([(rows * of_column).sum(-1) for of_column in weights], -1)
    return products if biases is None else products + biases.float()
