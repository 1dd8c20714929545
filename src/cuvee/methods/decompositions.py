"""Decompositions of single matrices, as stages ask for them (`methods.contract.Decomposer`).

Owns the choice of algorithm by shape, type and wanted rank. Must not know where results are kept; an engine may wrap
it with a store. What is computed depends on the matrix and the *level* of the wanted rank alone, so that a store that
holds a level gives the same bits as computing again: levels are 64, 1/8 and 1/2 of the directions, and all of them.
`docs/guides/spectral-methods.md` has the timings behind the choices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from cuvee.core.digests import bytes_digest, tensor_bytes
from cuvee.core.lazy import torch
from cuvee.errors import RunError
from cuvee.methods.contract import Decomposer

if TYPE_CHECKING:
    from torch import Tensor

Triplets: TypeAlias = "tuple[Tensor, Tensor, Tensor]"

VERSION = 4  # of the algorithms: another number where results may change by a bit
RESIDUAL = 4e-6  # ‖A v − σ u‖ beside σ₁ up to which approximate float32 triplets are accepted
SPARE = 64  # columns of a sketch beyond the wanted rank
_ITERATIONS = 4  # of the sketch; two leave errors of 2e-3 on deltas of fine-tuned models
_JUDGED = 2  # iterations after which it is judged whether the sketch will be accurate enough
_FAR = 0.5  # σ_last beside σ_wanted of the first sketch beyond which more iterations are no use
_NOTHING = 3e-6  # share of a vector that rounding may leave outside of a basis that holds it
_SMALL = 256  # directions below which LAPACK's own takes no time
_TALL = 1.25  # rows beside columns from which the Gram matrix is worth its squared condition
_STABLE = 32  # directions for each unit of ‖A‖² / σ₁² up to which a spectrum counts as flat
_CONDITION = 1e-5  # σ beside σ₁ down to which directions are taken from a float64 Gram matrix
_DOUBLED = 2048  # columns up to which square matrices may take the memory of a float64 Gram matrix
_ROWS = 1024  # rows at a time in float64


class Plain:
    """Computes each decomposition when asked."""

    def svd(self, matrix: Tensor, rank: int | None = None, *, spend: bool = False) -> Triplets:
        """Thin singular value decomposition; the leading `rank` triplets if given."""
        u, s, vh = svd_at(matrix, level(tuple(matrix.shape), str(matrix.dtype), rank), spend=spend)
        return u[:, :rank], s[:rank], vh[:rank]

    def eigh(self, matrix: Tensor, *, spend: bool = False) -> tuple[Tensor, Tensor]:
        """Eigenvalues ascending and eigenvectors of a symmetric matrix."""
        return eigh(matrix, spend=spend)


def eigh(matrix: Tensor, *, spend: bool = False) -> tuple[Tensor, Tensor]:
    """Eigenvalues ascending and eigenvectors of a symmetric matrix, the vectors as columns one after the other.

    With `spend` they take the matrix's own memory; the values are the same.
    """
    _finite(matrix)
    matrix = matrix.detach()
    room = matrix.contiguous() if spend else matrix.clone(memory_format=torch.contiguous_format)
    return _eigh_in_place(room)


def _eigh_in_place(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values = matrix.new_empty(len(matrix))
    torch.linalg.eigh(matrix.T, out=(values, matrix.T))  # LAPACK's layout: nothing is copied
    return values, matrix.T


def level(shape: tuple[int, ...], dtype: str, rank: int | None) -> int:
    """How many triplets are computed where `rank` are wanted (None: all) of a matrix of this shape."""
    full = min(shape)
    if rank is None or full < _SMALL or "float32" not in dtype:
        return full
    levels = (SPARE, full // 8, full // 2)
    return next((one for one in levels if rank <= one), full)


def svd_at(matrix: Tensor, wanted: int, *, spend: bool = False) -> Triplets:
    """At least `wanted` leading triplets: U (m×k), σ descending (k), Vᵀ (k×n), with k = `wanted` or min(m, n).

    Approximate algorithms are tried where they pay and accepted where their error is bounded by `RESIDUAL`: each
    residual ‖A v − σ u‖ is computed (‖Aᵀu − σ v‖ is rounding error by construction), and A has a singular value
    within that distance of σ (Weyl). Else LAPACK's divide and conquer gives all min(m, n). With `spend` the matrix's
    memory may be used up; the result is the same.
    """
    _finite(matrix)
    u, s, vh = _chosen(matrix.detach(), wanted, spend=spend)
    return u.T.contiguous().T, s.contiguous(), vh.contiguous()  # one layout, as products may depend on it


def _chosen(matrix: Tensor, wanted: int, *, spend: bool = False) -> Triplets:
    rows, columns = matrix.shape
    if not matrix.numel():
        return matrix.new_empty(rows, 0), matrix.new_empty(0), matrix.new_empty(0, columns)
    if min(rows, columns) < _SMALL or matrix.dtype != torch.float32:
        # As given, not transposed: where vectors are not determined, other programs' choice is the same.
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh
    if rows < columns:
        u, s, vh = _chosen(matrix.T, wanted, spend=spend)
        return vh.T, s, u.T
    for algorithm in _candidates(matrix, wanted):
        found = algorithm(matrix, wanted)
        if found is not None:
            return found
    if spend and (matrix.is_contiguous() or matrix.T.is_contiguous()):
        return _lapack_in_place(matrix)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def _lapack_in_place(matrix: Tensor) -> Triplets:
    """LAPACK's divide and conquer with U in the memory of a tall matrix: seven copies of it instead of eight."""
    rows, columns = matrix.shape
    flat = matrix if matrix.is_contiguous() else matrix.T
    u, s = flat.view(columns, rows).T, matrix.new_empty(columns)
    vh = matrix.new_empty(columns, columns).T
    torch.linalg.svd(matrix, full_matrices=False, out=(u, s, vh))  # copies the matrix before it writes
    return u, s, vh


def polar(matrix: Tensor, decompose: Decomposer, tolerance: float) -> Tensor:
    """The orthogonal polar factor P Qᵀ of P D Qᵀ: the nearest matrix with orthonormal columns (or rows).

    The matrix is used up. Directions with a singular value up to `tolerance` times the largest have no factor of their
    own, and are left out, where a plain P Qᵀ would fill in what the library happens to return.
    """
    u, s, vh = decompose.svd(matrix, spend=True)
    kept = rank_of(s, tolerance)
    return u[:, :kept] @ vh[:kept]


def rank_of(values: Tensor, tolerance: float) -> int:
    """How many singular values (descending) exceed `tolerance` times the largest, which does unless it is 0."""
    if not len(values):
        return 0
    return max(int((values > tolerance * values[:1]).sum()), int(values[0] > 0))


def gram(matrix: Tensor) -> Tensor:
    """AᵀA in float64, a thousand rows at a time."""
    total = matrix.new_zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for start in range(0, len(matrix), _ROWS):
        wide = matrix[start : start + _ROWS].double()
        total.addmm_(wide.T, wide)
    return total


def content(matrix: Tensor) -> str:
    """The digest of a matrix's values in row order."""
    return bytes_digest(tensor_bytes(matrix))


def _candidates(matrix: Tensor, wanted: int) -> list[Callable[[Tensor, int], Triplets | None]]:
    """Algorithms cheaper than LAPACK's for a matrix of at least as many rows as columns, cheapest first."""
    rows, columns = matrix.shape
    out: list[Callable[[Tensor, int], Triplets | None]] = []
    if wanted + SPARE <= columns // 4:
        out.append(_sketched)
    if wanted <= columns // 2:
        out.append(_by_narrow_gram)
    if rows >= _TALL * columns or (wanted <= columns // 2 and columns <= _DOUBLED):
        out.append(_by_wide_gram)
    return out


def _sketched(matrix: Tensor, wanted: int) -> Triplets | None:
    """Randomised subspace iteration (Halko, Martinsson, Tropp 2011), given up early where the spectrum is too flat.

    The sketch is drawn from the digest of the matrix. That it misses a leading direction altogether has a
    probability far below 1e-30 with 64 spare columns; all else the residuals show.
    """
    seed = int(content(matrix)[:15], 16)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], wanted + SPARE, generator=generator).to(matrix.device)
    basis = _orthonormal(matrix @ start)
    for iteration in range(_ITERATIONS):
        back = matrix.T @ basis
        if iteration < _JUDGED and _too_flat(back, wanted, iteration):
            return None
        basis = _orthonormal(matrix @ _orthonormal(back))
    return _rayleigh_ritz(matrix, basis, wanted)


def _too_flat(back: Tensor, wanted: int, iteration: int) -> bool:
    """Whether the remaining iterations cannot bring the residuals down to what is accepted.

    What lies outside the sketch shrinks by (σ_last / σ_wanted)² in each. The first look is coarse, since the values
    still hold much of what lies outside: it only ends what is far from converging.
    """
    values = torch.linalg.eigvalsh(gram(back)).clamp(min=0).sqrt().flip(0)
    first, own, last = (float(values[i]) for i in (0, wanted - 1, -1))
    if own <= RESIDUAL * first:
        return False
    if iteration == 0:
        return last > _FAR * own
    return last / first * (last / own) ** (2 * _ITERATIONS - 3) > 10 * RESIDUAL


def _by_narrow_gram(matrix: Tensor, wanted: int) -> Triplets | None:
    """Start from eigenvectors of the float32 Gram matrix: half the memory and time of LAPACK's on square matrices.

    Rounding of AᵀA hides directions with σ far below σ₁, so it is for flat spectra.
    """
    if not _flat(matrix):
        return None
    start = _eigh_in_place(matrix.T @ matrix)[1][:, -(wanted + SPARE) :]
    basis = _orthonormal(matrix @ start)
    del start
    return _rayleigh_ritz(matrix, basis, wanted)


def _flat(matrix: Tensor) -> bool:
    """Whether ‖A‖² / σ₁² is a good part of the number of directions, by six steps of power iteration."""
    vector = torch.ones(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    largest = torch.zeros((), dtype=matrix.dtype, device=matrix.device)
    for _ in range(6):
        image = matrix @ (vector / vector.norm().clamp(min=1e-30))
        largest, vector = image.norm(), matrix.T @ image
    return float(matrix.norm()) ** 2 * _STABLE > min(matrix.shape) * float(largest) ** 2


def _by_wide_gram(matrix: Tensor, wanted: int) -> Triplets | None:
    """Eigenvectors of the float64 Gram matrix, accepted where the last wanted σ is far enough from its rounding."""
    if wanted > 2 * SPARE and _low_rank(matrix):
        return None  # without forming it: the last wanted σ is zero
    values, vectors = _eigh_in_place(gram(matrix))
    s = values.flip(0)[:wanted].clamp(min=0).sqrt()
    if float(s[-1]) <= _CONDITION * float(s[0]):
        return None
    v = vectors[:, -wanted:].flip(1)
    del vectors
    scaled = v / s
    u = matrix.new_empty(len(matrix), wanted)
    for start in range(0, len(matrix), _ROWS):
        u[start : start + _ROWS] = matrix[start : start + _ROWS].double() @ scaled
    return u, s.to(matrix.dtype), v.T.to(matrix.dtype).contiguous()


def _low_rank(matrix: Tensor) -> bool:
    """Whether a handful of directions hold a matrix, as those of LoRA: what a random vector maps to lies among them."""
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(matrix.shape[1], SPARE + 17, generator=generator).to(matrix.device, matrix.dtype)
    images = matrix @ probes
    basis, image = _orthonormal(images[:, 1:]), images[:, 0]
    return float((image - basis @ (basis.T @ image)).norm()) <= _NOTHING * float(image.norm())


def _rayleigh_ritz(matrix: Tensor, basis: Tensor, wanted: int) -> Triplets | None:
    """The best triplets within a basis of the range; None where a residual is too large."""
    inner = basis.T @ matrix
    turn, s, vh = _chosen(inner, len(inner))
    u, s, vh = basis @ turn[:, :wanted], s[:wanted], vh[:wanted].contiguous()
    residual = (matrix @ vh.T).sub_(u * s).norm(dim=0).max()
    return (u, s, vh) if float(residual) <= RESIDUAL * float(s[0]) else None


def _orthonormal(matrix: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(matrix)[0]
    return basis


def _finite(matrix: Tensor) -> None:
    if matrix.dim() != 2:
        raise RunError("CV-E161", f"a decomposition takes a matrix, got {matrix.dim()} axes")
    runs = (matrix[start : start + _ROWS] for start in range(0, len(matrix), _ROWS))
    if not all(bool(torch.isfinite(run).all()) for run in runs):
        raise RunError(
            "CV-E160",
            "a matrix that is to be decomposed has NaN or infinite entries",
            hint="find the input that has them with `cuvee inspect`, or leave the tensor out with `spectral: false`",
        )
