"""C++ kernels of the fast path, their build and their signatures."""
