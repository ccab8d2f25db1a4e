"""Mixed products, and how a tensor is written as one."""

import pytest
import torch

from models.mixers.structure.product import invert, mixed_product, shift_matrices


def test_a_mixed_product_sums_outer_products():
    a, b = torch.randn(3, 2, 4), torch.randn(3, 5)
    wanted = sum(a[k][..., None] * b[k] for k in range(3))
    torch.testing.assert_close(mixed_product(a, b), wanted)


def test_any_tensor_is_the_product_of_a_complete_basis_with_one_theta():
    a, theta = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(6, 4, 5, dtype=torch.float64)
    phi = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(mixed_product(a, invert(a, phi)), phi)
    torch.testing.assert_close(invert(a, mixed_product(a, theta)), theta)


def test_fewer_matrices_give_the_least_squares_fit():
    a, phi = torch.randn(3, 2, 3, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    rest = phi - mixed_product(a, invert(a, phi))
    torch.testing.assert_close(torch.einsum("kmn,mnt->kt", a, rest), torch.zeros(3, 4, dtype=torch.float64))


def test_the_product_with_shifts_is_a_matrix_for_each_pair_by_its_offset():
    theta = torch.randn(5, 2, 2, dtype=torch.float64)
    phi = mixed_product(shift_matrices((3,), (2,)), theta)
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(phi[i, j], theta[i - j + 2])
    torch.testing.assert_close(invert(shift_matrices((3,), (2,)), phi), theta)


def test_a_tensor_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"a tensor of shape \(2, 2\): it must begin with \(2, 3\)"):
        invert(torch.randn(6, 2, 3), torch.randn(2, 2))
