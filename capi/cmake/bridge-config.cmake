# For projects with the Python package but without an installed library: builds the library as part of
# the project. cmake -Dbridge_DIR=$(python -m bridge --cmake-dir) -DPython_EXECUTABLE=$(which python) …
if(NOT TARGET bridge::bridge)
  enable_language(C)
  add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/.." "${CMAKE_BINARY_DIR}/bridge" EXCLUDE_FROM_ALL)
endif()
