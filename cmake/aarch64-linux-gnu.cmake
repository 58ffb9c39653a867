# AArch64 from another Linux, with Debian's cross compiler; programs are run by
# qemu-user. `./dev aarch64` unpacks into .deps/aarch64 what is linked.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

cmake_path(SET root NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../.deps/aarch64")
set(libraries "${root}/usr/lib/aarch64-linux-gnu")
set(CMAKE_FIND_ROOT_PATH "${root}" /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# FAISS's library is a Python module, for which a program brings libpython; that
# needs other libraries in turn
file(GLOB libpython "${libraries}/libpython3.*.so.1.0")
set(CMAKE_CXX_STANDARD_LIBRARIES "${libpython}")
set(paths "${libraries}:${root}/lib/aarch64-linux-gnu")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,-rpath-link,${paths}")

set(CMAKE_CROSSCOMPILING_EMULATOR
  qemu-aarch64 -L /usr/aarch64-linux-gnu -E "LD_LIBRARY_PATH=${paths}")
