"""Eigenvalues of symmetric matrices by way of their tridiagonal form, for threads side by side.

LAPACK's dsytrd and dsterf are what `numpy.linalg.eigvalsh` calls one after the other. Apart, one
reduction serves two matrices: it leaves its first axis in place, so that what changes a matrix
along that axis alone changes one number of the tridiagonal form. They are called through SciPy's
table of C functions, since its Python functions for them hold the interpreter's lock.
"""

import ctypes

import numpy as np
from scipy.linalg import cython_lapack

_BLOCK = 32  # columns that LAPACK reduces together


def _lapack(name: str, arguments: int):
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_lapack.__pyx_capi__[name]
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)
    return kind(get_pointer(capsule, get_name(capsule)))


_DSYTRD, _DSTERF = _lapack("dsytrd", 10), _lapack("dsterf", 4)


def _call(function, *arguments) -> None:
    """Calls by reference; the last argument, which LAPACK fills with its complaint, is added."""
    # Eight bytes, little end first, are also right where LAPACK looks at four of them.
    held = [np.array(a) if isinstance(a, int | bytes) else a for a in (*arguments, 0)]
    function(*(array.ctypes.data for array in held))
    if held[-1] != 0:
        raise np.linalg.LinAlgError(f"LAPACK gave up with code {held[-1]}.")


def reduce(matrix: np.ndarray, first: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The tridiagonal form of a symmetric matrix.

    Args:
      matrix: shape (n, n), symmetric, in float64; overwritten if it is contiguous.
      first: a unit vector, shape (n,), that becomes the first axis.

    Returns:
      Diagonal (n,) and off-diagonal (n - 1,).
    """
    n = len(matrix)
    if first is not None:
        # Householder's reflection that takes `first` to the first axis, from both sides.
        normal = first.copy()
        normal[0] += np.copysign(1, first[0])
        normal *= np.sqrt(2) / np.linalg.norm(normal)
        other = matrix @ normal
        other -= (normal @ other / 2) * normal
        matrix = matrix - np.stack([normal, other], 1) @ np.stack([other, normal])
    matrix = np.ascontiguousarray(matrix, np.float64)
    diagonal, beside, scales, work = (np.empty(size) for size in (n, n, n, _BLOCK * n))
    # Rows of a symmetric matrix are the columns that LAPACK expects.
    _call(_DSYTRD, b"L", n, matrix, n, diagonal, beside, scales, work, _BLOCK * n)
    return diagonal, beside[: n - 1]


def eigenvalues(diagonal: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues of a symmetric tridiagonal matrix; neither argument is changed."""
    values = np.array(diagonal, np.float64)
    # One longer than LAPACK asks for, so that it is never empty.
    _call(_DSTERF, len(values), values, np.append(beside, 0.0))
    return values
