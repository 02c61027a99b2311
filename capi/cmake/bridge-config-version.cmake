# Compatible within a minor version, like an installed library.
file(GLOB version_file "${CMAKE_CURRENT_LIST_DIR}/../../version.py"
     "${CMAKE_CURRENT_LIST_DIR}/../../src/bridge/version.py")
file(STRINGS "${version_file}" PACKAGE_VERSION REGEX "__version__ = ")
string(REGEX REPLACE ".*\"(.*)\".*" "\\1" PACKAGE_VERSION "${PACKAGE_VERSION}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" minor "${PACKAGE_VERSION}")
string(REGEX MATCH "^[0-9]+(\\.[0-9]+)?" wanted "${PACKAGE_FIND_VERSION}")
if(PACKAGE_FIND_VERSION STREQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
if(minor VERSION_EQUAL wanted AND NOT PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
