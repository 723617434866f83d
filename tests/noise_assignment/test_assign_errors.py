import pytest
import torch

from privgen.noise_assignment.assign import assign_noise, noise_permutation


X = torch.ones(4, 3, 8, 8)


def broken(value):
    x_0 = X.clone()
    x_0[2, 1, 3, 3] = value
    return x_0


@pytest.mark.parametrize(
    ("x_0", "eps", "options", "message"),
    [
        (X, X, {"method": "nearest"}, r"expected method to be one of auto, linear, knn, auction, got 'nearest'"),
        (X.int(), X, {}, r"expected x_0 of a floating dtype, got torch.int32"),
        (X, X.to(torch.complex64), {}, r"expected eps of a floating dtype, got torch.complex64"),
        (X[:, 0, 0, 0], X, {}, r"expected x_0 of shape \(B, ...\) with at least one value, got \(4,\)"),
        (X[:0], X[:0], {}, r"with at least one value, got \(0, 3, 8, 8\)"),
        (X, X[:3], {}, r"expected eps of shape \(4, 3, 8, 8\) as x_0, or .* got \(3, 3, 8, 8\)"),
        (X, X[:, :, :4], {}, r"got \(4, 3, 4, 8\)"),
        (X, X[:0], {}, r"got \(0, 3, 8, 8\)"),
        (X, X[None].expand(5, -1, -1, -1, -1), {}, r"got \(5, 4, 3, 8, 8\)"),
        (X, X.to("meta"), {}, r"expected eps on cpu as x_0, got meta"),
        (X, X[:, None], {"method": "linear"}, r"expected one noise per image for 'linear', got eps of shape"),
        (X, X[:, None], {"method": "auto", "candidates": 2}, r"expected candidates=1 as eps holds, got 2"),
        (X, X, {"method": "knn", "candidates": 0}, r"expected candidates of at least 1, got 0"),
        (X, X, {"method": "knn", "generator": [torch.Generator()]}, r"expected 4 generators, one per image, got 1"),
        (X, X, {"labels": [1, 2, 3]}, r"expected 4 labels, one per image, got \[1, 2, 3\]"),
        (X, X, {"labels": "cats"}, r"expected 4 labels, one per image, got 'cats'"),
        (X, X, {"labels": torch.ones(4, 1, dtype=torch.int64)}, r"expected 4 labels, one per image, got \(4, 1\)"),
        (X, X, {"labels": torch.ones(4)}, r"expected labels of an integer dtype, got torch.float32"),
        (X, X, {"condition": X[:3]}, r"expected condition of shape \(4, ...\), got \(3, 3, 8, 8\)"),
        (X, X, {"condition": broken(torch.nan)}, r"expected finite condition, got NaN or infinity in 1 of 4 rows"),
        (X, X, {"condition": X, "condition_weight": -1}, r"expected condition_weight of at least 0, got -1"),
        (broken(torch.nan), X, {}, r"expected finite x_0, got NaN or infinity in 1 of 4 rows: \[2\]"),
        (X, broken(torch.inf), {}, r"expected finite eps, got NaN or infinity in 1 of 4 rows: \[2\]"),
        (X, broken(-torch.inf), {"labels": [0, 1, 2, 3]}, r"expected finite eps"),
        (X, broken(torch.nan), {"method": "knn"}, r"expected finite eps"),
        (broken(-torch.inf), X, {"method": "auction"}, r"expected finite x_0"),
        (X, broken(torch.nan)[:, None].expand(-1, 2, -1, -1, -1), {"method": "knn"}, r"expected finite eps"),
        (broken(3e38), broken(3e38), {"method": "knn"}, r"whose products fit torch.float32, got an overflow"),
        (X, broken(torch.nan), {"method": "auto"}, r"expected finite eps"),
        (broken(torch.inf), X, {"labels": [0, 0, 1, 1]}, r"expected finite x_0"),
        (broken(torch.inf), X, {"labels": [0, 0, 1, 2]}, r"expected finite x_0"),
        (torch.zeros_like(X), broken(torch.inf), {}, r"expected finite eps"),
        (broken(3e38), broken(3e38), {}, r"whose products fit torch.float32, got an overflow"),
    ],
)
def test_errors_say_what_was_expected(x_0, eps, options, message):
    with pytest.raises(ValueError, match=message):
        assign_noise(x_0, eps, **({"method": "linear"} | options))


def test_large_finite_values_are_no_error(generator):
    x_0, eps = torch.full((4, 60_000), 60_000.0, dtype=torch.float16), torch.ones(4, 60_000, dtype=torch.float16)
    assert torch.equal(assign_noise(x_0, eps, method="linear"), eps)


@pytest.mark.parametrize("method", ["auto", "knn"])
def test_a_permutation_is_of_methods_that_permute(method):
    with pytest.raises(ValueError, match=f"expected method 'linear' or 'auction' for a permutation, got '{method}'"):
        noise_permutation(X, X, method=method)
