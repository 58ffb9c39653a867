# Finds the headers and the library of one and the same FAISS release.
#
# Tried in this order:
#
#   1. find_package(faiss CONFIG): a FAISS built from source, or conda's
#   2. the cache variables FAISS_INCLUDE_DIR and FAISS_LIBRARY
#   3. the Python wheel faiss-cpu, which holds the library but no headers.
#      FAISS_WHEEL_DIR, or the installed package of the Python interpreter,
#      gives the library; FAISS_INCLUDE_DIR, or `faiss/Index.h` in
#      CMAKE_PREFIX_PATH, the headers
#
# Classes of FAISS change their layout between releases, so headers of one and
# a library of another are refused, with both numbers.
#
# Defines the target Faiss::faiss and the variables
#
#   Faiss_FOUND
#   Faiss_VERSION       release of the headers and of the library
#   Faiss_INCLUDE_DIR   directory that contains faiss/Index.h
#   Faiss_ORIGIN        "package", "variables" or "wheel"

include(FindPackageHandleStandardArgs)

set(FAISS_LIBRARY "" CACHE FILEPATH "FAISS library")
set(FAISS_WHEEL_DIR "" CACHE PATH
    "Unpacked faiss-cpu wheel: the directory named faiss")

# The release that the headers in `include_dir` declare.
function(_faiss_header_version include_dir result)
  set(version "")
  if(EXISTS "${include_dir}/faiss/Index.h")
    file(STRINGS "${include_dir}/faiss/Index.h" lines
         REGEX "^#define FAISS_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
    string(REGEX MATCHALL " [0-9]+" numbers "${lines}")
    list(JOIN numbers "." version)
    string(REPLACE " " "" version "${version}")
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# Defines Faiss::faiss for a library file, with what a program that links it
# has to link besides.
function(_faiss_define_target include_dir library)
  if(TARGET Faiss::faiss)
    return()
  endif()
  add_library(Faiss::faiss UNKNOWN IMPORTED)
  set_target_properties(Faiss::faiss PROPERTIES
    IMPORTED_LOCATION "${library}"
    INTERFACE_INCLUDE_DIRECTORIES "${include_dir}")
  cmake_path(GET library PARENT_PATH dir)
  cmake_path(GET library FILENAME name)
  if(name MATCHES "_swigfaiss" AND TARGET Python::Python)
    # a Python module: the program brings the interpreter's symbols
    set_property(TARGET Faiss::faiss APPEND PROPERTY
      INTERFACE_LINK_LIBRARIES Python::Python)
  elseif(name MATCHES "\\.a$")
    find_package(LAPACK REQUIRED)
    set_property(TARGET Faiss::faiss APPEND PROPERTY
      INTERFACE_LINK_LIBRARIES LAPACK::LAPACK OpenMP::OpenMP_CXX)
  endif()
  # a wheel's own copies of what it needs lie beside the package
  file(GLOB bundled LIST_DIRECTORIES ON "${dir}/../faiss*.libs")
  if(bundled)
    set_property(TARGET Faiss::faiss APPEND PROPERTY
      INTERFACE_LINK_OPTIONS "LINKER:-rpath-link,${bundled}")
  endif()
endfunction()

# The release that the library of Faiss::faiss says it is.
function(_faiss_library_version result)
  set(source "${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/faiss_version.cpp")
  file(WRITE "${source}" "
    #include <cstdio>
    #include <string>
    namespace faiss { std::string get_version(); }
    int main() { std::printf(\"%s\", faiss::get_version().c_str()); }
")
  # asked at every configuring: the file may have been replaced
  unset(_faiss_runs CACHE)
  unset(_faiss_compiles CACHE)
  try_run(_faiss_runs _faiss_compiles
          "${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/faiss_version" "${source}"
          LINK_LIBRARIES Faiss::faiss
          COMPILE_OUTPUT_VARIABLE output
          RUN_OUTPUT_VARIABLE version)
  if(NOT _faiss_compiles OR NOT _faiss_runs EQUAL 0)
    message(FATAL_ERROR
      "FAISS_LIBRARY=${FAISS_LIBRARY} could not be asked for its version.\n"
      "${output}${version}")
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# FAISS's own package expects OpenMP::OpenMP_CXX to be defined.
find_package(OpenMP QUIET COMPONENTS CXX)
find_package(Python 3.10 QUIET
  COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Embed)

# 1. a CMake package
foreach(_faiss_name IN ITEMS _faiss_library _faiss_headers_version
                             _faiss_library_version Faiss_INCLUDE_DIR)
  set(${_faiss_name} "")
endforeach()
if(NOT TARGET faiss)
  find_package(faiss ${Faiss_FIND_VERSION} CONFIG QUIET)
endif()
if(TARGET faiss)
  set(Faiss_ORIGIN "package")
  set(_faiss_library "faiss")
  set(_faiss_where "${faiss_DIR}")
  set(_faiss_library_version "${faiss_VERSION}")
  get_target_property(_faiss_includes faiss INTERFACE_INCLUDE_DIRECTORIES)
  foreach(_faiss_dir IN LISTS _faiss_includes)
    # a FAISS in the same build tree wraps its directories
    string(REGEX REPLACE "^\\$<BUILD_INTERFACE:(.*)>$" "\\1"
           _faiss_dir "${_faiss_dir}")
    if(EXISTS "${_faiss_dir}/faiss/Index.h")
      set(Faiss_INCLUDE_DIR "${_faiss_dir}")
    endif()
  endforeach()
  _faiss_header_version("${Faiss_INCLUDE_DIR}" _faiss_headers_version)
  if(NOT _faiss_library_version)
    # add_subdirectory(faiss): headers and library are one source tree
    set(_faiss_library_version "${_faiss_headers_version}")
  endif()

# 2. variables
elseif(FAISS_LIBRARY)
  set(Faiss_ORIGIN "variables")
  set(_faiss_library "${FAISS_LIBRARY}")
  set(_faiss_where "${FAISS_LIBRARY}")
  find_path(FAISS_INCLUDE_DIR faiss/Index.h)
  set(Faiss_INCLUDE_DIR "${FAISS_INCLUDE_DIR}")
  _faiss_header_version("${Faiss_INCLUDE_DIR}" _faiss_headers_version)
  _faiss_define_target("${Faiss_INCLUDE_DIR}" "${FAISS_LIBRARY}")
  _faiss_library_version(_faiss_library_version)

# 3. the wheel
else()
  set(Faiss_ORIGIN "wheel")
  if(NOT FAISS_WHEEL_DIR AND Python_EXECUTABLE)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
        "import importlib.util as u, os; s = u.find_spec('faiss'); print(os.path.dirname(s.origin) if s and s.origin else '', end='')"
      OUTPUT_VARIABLE _faiss_where ERROR_QUIET)
  else()
    set(_faiss_where "${FAISS_WHEEL_DIR}")
  endif()
  # From 1.14.2 on the wheel has a library of its own. Before, FAISS is inside
  # the Python modules; the plain one runs on every processor.
  foreach(_faiss_name IN ITEMS libfaiss.so _swigfaiss.abi3.so)
    if(NOT _faiss_library AND EXISTS "${_faiss_where}/${_faiss_name}")
      set(_faiss_library "${_faiss_where}/${_faiss_name}")
    endif()
  endforeach()
  file(GLOB _faiss_metadata
       "${_faiss_where}/../faiss*.dist-info/METADATA"
       "${_faiss_where}/faiss*.dist-info/METADATA")
  if(_faiss_metadata)
    list(GET _faiss_metadata 0 _faiss_metadata)
    file(STRINGS "${_faiss_metadata}" _faiss_line REGEX "^Version: " LIMIT_COUNT 1)
    string(REPLACE "Version: " "" _faiss_library_version "${_faiss_line}")
    # a rebuilt wheel of the same release has a suffix
    string(REGEX REPLACE "(\\.post[0-9]+|\\+.*)$" ""
           _faiss_library_version "${_faiss_library_version}")
  endif()
  find_path(FAISS_INCLUDE_DIR faiss/Index.h)
  set(Faiss_INCLUDE_DIR "${FAISS_INCLUDE_DIR}")
  _faiss_header_version("${Faiss_INCLUDE_DIR}" _faiss_headers_version)
endif()

if(_faiss_headers_version AND _faiss_library_version
   AND NOT _faiss_headers_version VERSION_EQUAL _faiss_library_version)
  message(FATAL_ERROR
    "FAISS headers and library are of different releases.\n"
    "  headers ${_faiss_headers_version}: ${Faiss_INCLUDE_DIR}\n"
    "  library ${_faiss_library_version}: ${_faiss_where}\n"
    "Set FAISS_INCLUDE_DIR to headers of ${_faiss_library_version}; or, if a "
    "FAISS with a CMake package should be passed over, "
    "CMAKE_DISABLE_FIND_PACKAGE_faiss=ON.")
endif()
set(Faiss_VERSION "${_faiss_headers_version}")

find_package_handle_standard_args(Faiss
  REQUIRED_VARS _faiss_library Faiss_INCLUDE_DIR _faiss_headers_version
                _faiss_library_version
  VERSION_VAR Faiss_VERSION
  REASON_FAILURE_MESSAGE
    "FAISS headers and library are needed: install FAISS with its CMake package, or set FAISS_INCLUDE_DIR and FAISS_LIBRARY, or install the wheel faiss-cpu in the Python environment and set FAISS_INCLUDE_DIR to headers of its release (./dev setup does so on Debian)")

if(Faiss_FOUND)
  if(Faiss_ORIGIN STREQUAL "wheel")
    _faiss_define_target("${Faiss_INCLUDE_DIR}" "${_faiss_library}")
  elseif(Faiss_ORIGIN STREQUAL "package" AND NOT TARGET Faiss::faiss)
    add_library(Faiss::faiss INTERFACE IMPORTED)
    set_target_properties(Faiss::faiss PROPERTIES
      INTERFACE_LINK_LIBRARIES faiss)
  endif()
endif()

if(Faiss_FOUND AND NOT Faiss_FIND_QUIETLY)
  message(STATUS "FAISS ${Faiss_VERSION} (${Faiss_ORIGIN}): "
                 "headers ${Faiss_INCLUDE_DIR}, library ${_faiss_where}")
endif()
mark_as_advanced(FAISS_INCLUDE_DIR FAISS_LIBRARY FAISS_WHEEL_DIR)
