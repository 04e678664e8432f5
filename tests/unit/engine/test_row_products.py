import pytest
import torch
import torch.nn.functional as F

from gptj_batch.engine.row_products import row_products

WIDTH = 128


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(70, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_product_in_float32(rows: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype) -> None:
    rows, weights, biases = rows.to(dtype), weights.to(dtype), torch.arange(40).to(dtype)
    products = row_products(rows, weights, biases)
    assert products.dtype == torch.float32
    torch.testing.assert_close(products, F.linear(rows.float(), weights.float(), biases.float()), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(row_products(rows, weights), products - biases.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("num_columns", [1, 2, 4, 40])
def test_neither_other_rows_nor_other_columns_change_a_bit(
    rows: torch.Tensor, weights: torch.Tensor, num_columns: int
) -> None:
    whole = row_products(rows, weights)
    for num_rows in range(1, len(rows)):
        part = row_products(rows[-num_rows:], weights[:num_columns])
        assert torch.equal(part, whole[-num_rows:, :num_columns])
