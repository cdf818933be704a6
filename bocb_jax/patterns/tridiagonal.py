"""Eigenvalues of symmetric matrices through their tridiagonal form, in several threads at once.

`numpy.linalg.eigvalsh` calls LAPACK's dsytrd (reduction to tridiagonal form) and dsterf
(eigenvalues of that) one after the other. Called apart, one reduction serves two matrices: it can
leave a chosen first axis in place, and a change of the matrix along that axis alone changes a
single entry of the tridiagonal form. Both are called through SciPy's table of C functions, because
SciPy's Python wrappers hold the interpreter's lock.
"""

import ctypes
from typing import Any

import numpy as np
from scipy.linalg import cython_lapack

_BLOCK = 32  # columns that LAPACK reduces together


def _lapack(name: str, num_arguments: int) -> Any:
    """Return a LAPACK routine as a ctypes function, which releases the lock while it runs."""
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_lapack.__pyx_capi__[name]
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * num_arguments)
    return kind(get_pointer(capsule, get_name(capsule)))


_DSYTRD, _DSTERF = _lapack("dsytrd", 10), _lapack("dsterf", 4)


def _call(function: Any, *arguments: np.ndarray | int | bytes) -> None:
    """Call a LAPACK routine by reference, with its last argument `info` added.

    Raises:
      numpy.linalg.LinAlgError: the routine reports a failure.
    """
    # Eight bytes, little-endian, are also right where LAPACK reads only four of them.
    held = [np.array(a) if isinstance(a, int | bytes) else a for a in (*arguments, 0)]
    function(*(array.ctypes.data for array in held))
    if held[-1] != 0:
        raise np.linalg.LinAlgError(f"LAPACK failed with code {held[-1]}.")


def reduce(
    matrix: np.ndarray, first_axis: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a symmetric matrix to tridiagonal form.

    Args:
      matrix: shape (n, n), symmetric, in float64; overwritten if it is contiguous.
      first_axis: a unit vector, shape (n,), that becomes the first axis of the new basis.

    Returns:
      Diagonal (n,) and off-diagonal (n - 1,).
    """
    n = len(matrix)
    if first_axis is not None:
        # A Householder reflection from both sides takes `first_axis` to the first axis.
        normal = first_axis.copy()
        normal[0] += np.copysign(1, first_axis[0])
        normal *= np.sqrt(2) / np.linalg.norm(normal)
        other = matrix @ normal
        other -= (normal @ other / 2) * normal
        matrix = matrix - np.stack([normal, other], 1) @ np.stack([other, normal])
    matrix = np.ascontiguousarray(matrix, np.float64)
    diagonal, off_diagonal, scales, work = (np.empty(size) for size in (n, n, n, _BLOCK * n))
    # Rows of a symmetric matrix are the columns that LAPACK expects.
    _call(_DSYTRD, b"L", n, matrix, n, diagonal, off_diagonal, scales, work, _BLOCK * n)
    return diagonal, off_diagonal[: n - 1]


def eigenvalues(diagonal: np.ndarray, off_diagonal: np.ndarray) -> np.ndarray:
    """Return the ascending eigenvalues of a symmetric tridiagonal matrix.

    Args:
      diagonal: shape (n,); not changed.
      off_diagonal: shape (n - 1,); not changed.
    """
    values = np.array(diagonal, np.float64)
    # One element more than LAPACK needs, so that the array is never empty.
    _call(_DSTERF, len(values), values, np.append(off_diagonal, 0.0))
    return values
