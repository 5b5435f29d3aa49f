"""Truncated singular value decomposition: the leading R triples of a matrix, as good as LAPACK's."""

from __future__ import annotations

import torch

from ofa_fast import _native
from ofa_fast.ops._op import Op, on_first_use, workspace
from ofa_fast.ops.truncated_svd import gram, reference


def _native_gram(matrix):
    threads, d = torch.get_num_threads(), matrix.shape[1]
    out = matrix.new_empty(d, d, dtype=torch.float64)
    scratch = workspace(_native.cpu.truncated_svd_gram_workspace(d, threads), out)
    _native.cpu.truncated_svd_gram(matrix, out, scratch, threads)
    return out


def _native_product(matrix, right, vectors):
    threads, d, columns = torch.get_num_threads(), *right.shape
    out = matrix.new_empty(matrix.shape[0], columns, dtype=torch.float32)
    scratch = workspace(_native.cpu.truncated_svd_product_workspace(d, columns, threads), out)
    images = matrix.new_empty(vectors.shape, dtype=torch.float64)
    _native.cpu.truncated_svd_product(matrix, right.float().contiguous(), vectors, out, images, scratch, threads)
    return out, images


def _fake(matrix, rank):
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    (n, d) = matrix.shape
    return tuple(matrix.new_empty(*shape, dtype=dtype) for shape in ((n, rank), (rank,), (rank, d)))


def _contiguous(function):
    return lambda *args: tuple(part.contiguous() for part in function(*args))


_forward = Op(
    "truncated_svd(Tensor matrix, int rank) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backends={
        "cpu": _contiguous(lambda matrix, rank: gram.truncated_svd(matrix, rank, _native_gram, _native_product)),
        "triton": on_first_use(f"{__name__}.triton", "forward"),
        "reference": _contiguous(reference.truncated_svd),
    },
)


def _backward_formula(grad_u, grad_s, grad_vh, matrix, u, s, vh):
    """The gradient of A [n, d], n >= d, from those of U = A V / S, S and V, the leading eigenvectors of G = AᵀA."""
    rank = s.shape[0]
    eigenvalues, vectors = torch.linalg.eigh(matrix.T @ matrix)
    eigenvalues, vectors = eigenvalues.flip(0), torch.cat([vh.T, vectors.flip(1)[:, rank:]], dim=1)
    weighted = grad_u / s
    grad_v = grad_vh.T + matrix.T @ weighted
    grad_s = grad_s - (u * weighted).sum(0)
    gap = eigenvalues[None, :rank] - eigenvalues[:, None]  # [d, R]
    gap.fill_diagonal_(torch.inf)
    inner = torch.cat([(vectors.T @ grad_v) / gap, matrix.new_zeros(len(eigenvalues), len(eigenvalues) - rank)], dim=1)
    inner.diagonal()[:rank].add_(grad_s / (2 * s))
    return weighted @ vh + matrix @ (vectors @ (inner + inner.T) @ vectors.T)


def _backward_run(grad_u, grad_s, grad_vh, matrix, u, s, vh):
    tensors = [t.double() for t in (grad_u, grad_s, grad_vh, matrix, u, s, vh)]
    if matrix.shape[0] < matrix.shape[1]:
        grad_u, grad_s, grad_vh, a, u, s, vh = tensors
        grad = _backward_formula(grad_vh.T, grad_s, grad_u.T, a.T, vh.T, s, u.T).T
    else:
        grad = _backward_formula(*tensors)
    return grad.to(matrix.dtype).contiguous()


_backward = Op(
    "truncated_svd_backward(Tensor grad_u, Tensor grad_s, Tensor grad_vh, Tensor matrix, "
    "Tensor u, Tensor s, Tensor vh) -> Tensor",
    fake=lambda grad_u, grad_s, grad_vh, matrix, *_: torch.empty_like(matrix, memory_format=torch.contiguous_format),
    backends={"cpu": _backward_run, "triton": _backward_run, "reference": _backward_run},
)


class _TruncatedSVD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, rank):
        outputs = _forward(matrix, rank)
        ctx.save_for_backward(matrix, *outputs)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        return _backward(*grads, *ctx.saved_tensors), None


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best approximation of rank R: ``matrix`` is about ``U @ torch.diag(S) @ Vh``.

    Args:
        matrix: [n, d], float32, float64, bfloat16 or float16, finite.
        rank: R, from 1 to min(n, d).

    Returns:
        U [n, R] and Vh [R, d] with orthonormal columns and rows, S [R] >= 0 in descending order; float32 (float64 for
        float64). Signs are fixed: the entry of largest magnitude in every row of Vh is positive. Differentiable where
        the singular values that are kept differ from each other and from those that are not.

    Raises:
        ValueError: a rank out of range, a shape, NaN or infinity. TypeError: a dtype.

    On the CPU: half of the Gram matrix to float32 accuracy in panels that are summed in float64, its leading
    eigenvectors, and one product. The residual is within 1e-6 relative of the optimum; U is orthonormal to 1e-5, which
    is checked on 16 random vectors. A matrix whose spectrum is too steep for that (S_1 / S_R above some 100) is
    decomposed in float64, by its Gram matrix or by QR. ``matrix`` is read twice from top to bottom and may be
    memory-mapped. Peak extra memory beyond the results, in bytes: where n >= d, 24 d² + 16 d R + 8,200 R + 6,200 d (and
    520 d a thread); in float64 8,192 rows more; where n < d a transposed copy as well. The backward pass works in
    float64 and takes 32 n d bytes.

    Source: Liu et al. 2024 (arXiv 2311.08849), section 3.1 uses U as coordinates and diag(S) Vh as basis.
    """
    if matrix.dim() != 2:
        raise ValueError(f"matrix must be [n, d], got {list(matrix.shape)}")
    if not matrix.is_floating_point():
        raise TypeError(f"matrix must be floating-point, got {matrix.dtype}")
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"rank must lie in [1, {min(matrix.shape)}] for a matrix {list(matrix.shape)}, got {rank}")
    return _TruncatedSVD.apply(matrix, rank)
