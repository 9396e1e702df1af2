# What is installed where, and the Debian packages of it: `cpack` in a build folder (deploy/packages does both).
set(doc ${CMAKE_INSTALL_DATAROOTDIR}/doc)
set(units lib/systemd/system)

# The programs describe themselves (deploy/man-pages).
set(man ${CMAKE_BINARY_DIR}/man)
add_custom_command(
  OUTPUT ${man}/done
  COMMAND ${CMAKE_COMMAND} -E rm -rf ${man}
  COMMAND ${CMAKE_SOURCE_DIR}/deploy/man-pages ${CMAKE_RUNTIME_OUTPUT_DIRECTORY} ${man}
  COMMAND ${CMAKE_COMMAND} -E touch ${man}/done
  DEPENDS shardfc shardfc-scheduler shardfc-shard shardfc-worker ${CMAKE_SOURCE_DIR}/deploy/man-pages
  VERBATIM)
add_custom_target(man-pages ALL DEPENDS ${man}/done)

install(TARGETS shardfc shardfc-scheduler shardfc-shard RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT server)
install(TARGETS shardfc-worker RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT worker)
install(DIRECTORY ${man}/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT server
        FILES_MATCHING PATTERN "*.gz" PATTERN shardfc-worker.1.gz EXCLUDE)
install(FILES ${man}/shardfc-worker.1.gz DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT worker)
install(FILES deploy/systemd/shardfc-scheduler.service deploy/systemd/shardfc-shard@.service
        DESTINATION ${units} COMPONENT server)
install(FILES deploy/systemd/shardfc-worker@.service DESTINATION ${units} COMPONENT worker)
install(FILES deploy/systemd/shardfc.target DESTINATION ${units} COMPONENT server)
install(FILES deploy/examples/scheduler.conf deploy/examples/shard-0.conf deploy/systemd/gpu.conf
        DESTINATION ${doc}/shardfc-server/examples COMPONENT server)
install(FILES deploy/examples/worker-0.conf deploy/systemd/gpu.conf
        DESTINATION ${doc}/shardfc-worker/examples COMPONENT worker)
foreach(package server worker)
  install(FILES deploy/debian/sysusers.conf DESTINATION lib/sysusers.d RENAME shardfc-${package}.conf
          COMPONENT ${package})
  install(FILES deploy/debian/tmpfiles.conf DESTINATION lib/tmpfiles.d RENAME shardfc-${package}.conf
          COMPONENT ${package})
endforeach()
install(FILES deploy/prometheus/alerts.yml deploy/prometheus/prometheus.yml
        DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/shardfc/prometheus COMPONENT server)
install(FILES deploy/grafana/shardfc.json DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/shardfc/grafana COMPONENT server)
file(GLOB pictures docs/status-page-*.png) # that OPERATIONS.md shows
install(FILES docs/OPERATIONS.md docs/CONFIGURATION.md docs/SECURITY.md ${pictures} DESTINATION ${doc}/shardfc-server COMPONENT server)
set(completions ${CMAKE_INSTALL_DATAROOTDIR}/bash-completion/completions)
install(FILES deploy/completion/shardfc DESTINATION ${completions} COMPONENT server)
foreach(program shardfc-scheduler shardfc-shard)
  install(FILES deploy/completion/shardfc DESTINATION ${completions} RENAME ${program} COMPONENT server)
endforeach()
install(FILES deploy/completion/shardfc DESTINATION ${completions} RENAME shardfc-worker COMPONENT worker)
install(TARGETS libshardfc
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT lib NAMELINK_COMPONENT dev)
install(FILES worker/include/shardfc.h DESTINATION include/shardfc COMPONENT dev)
install(FILES proto/base/status.h proto/base/options.h DESTINATION include/shardfc/proto/base COMPONENT dev)
install(FILES proto/security.h DESTINATION include/shardfc/proto COMPONENT dev)
configure_file(worker/libshardfc.pc.in ${CMAKE_BINARY_DIR}/libshardfc.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/libshardfc.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)

set(SFC_PACKAGE_VERSION ${PROJECT_VERSION} CACHE STRING "version of the packages")
set(SFC_PACKAGE_MAINTAINER "ShardFC maintainers <maintainers@shardfc.invalid>" CACHE STRING
    "who answers for the packages: name and address")
configure_file(deploy/debian/changelog.in ${CMAKE_BINARY_DIR}/changelog @ONLY)
execute_process(COMMAND gzip -9nkf ${CMAKE_BINARY_DIR}/changelog COMMAND_ERROR_IS_FATAL ANY)

set(components server worker lib dev)
if(SFC_CUDA)
  list(APPEND components cuda)
endif()
foreach(component ${components})
  string(REPLACE "lib" "libshardfc0" package ${component})
  string(REPLACE "dev" "libshardfc-dev" package ${package})
  if(NOT package MATCHES "^lib")
    set(package shardfc-${package})
  endif()
  string(TOUPPER ${component} key)
  set(CPACK_DEBIAN_${key}_PACKAGE_NAME ${package})
  install(FILES deploy/debian/copyright ${CMAKE_BINARY_DIR}/changelog.gz DESTINATION ${doc}/${package} COMPONENT ${component})
endforeach()
set(deploy ${CMAKE_SOURCE_DIR}/deploy/debian)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME shardfc)
set(CPACK_PACKAGE_VERSION ${SFC_PACKAGE_VERSION})
set(CPACK_PACKAGE_CONTACT "${SFC_PACKAGE_MAINTAINER}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_PACKAGE_DIRECTORY ${CMAKE_BINARY_DIR}/packages)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL ${components})
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING ONE_PER_GROUP)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_LIB_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_COMPONENT_SERVER_DESCRIPTION "training service for classifiers of millions of identities: servers
 The scheduler and the shard servers of ShardFC, which hold the class centres
 of a sharded softmax, and the command-line tool shardfc.")
set(CPACK_COMPONENT_WORKER_DESCRIPTION "training service for classifiers of millions of identities: workers
 Workers of ShardFC read images and compute the backbone. They hold no state.")
set(CPACK_COMPONENT_CUDA_DESCRIPTION "training service for classifiers of millions of identities: NVIDIA GPUs
 The CUDA backend of ShardFC's shards and the lanes of its workers on cuDNN.")
set(CPACK_COMPONENT_LIB_DESCRIPTION "client library of ShardFC
 What a worker or another framework needs to train against a class layer that
 lives on ShardFC's shards.")
set(CPACK_COMPONENT_DEV_DESCRIPTION "client library of ShardFC: headers
 What is needed to compile programs that use libshardfc0.")
set(CPACK_DEBIAN_SERVER_PACKAGE_CONTROL_EXTRA "${deploy}/server/postinst;${deploy}/server/prerm;${deploy}/server/postrm")
set(CPACK_DEBIAN_WORKER_PACKAGE_CONTROL_EXTRA "${deploy}/worker/postinst;${deploy}/worker/prerm;${deploy}/worker/postrm")
set(CPACK_DEBIAN_SERVER_PACKAGE_DEPENDS "systemd | systemd-standalone-sysusers")
set(CPACK_DEBIAN_WORKER_PACKAGE_DEPENDS "systemd | systemd-standalone-sysusers")
set(CPACK_DEBIAN_SERVER_PACKAGE_SUGGESTS "etcd-server, shardfc-cuda")
set(CPACK_DEBIAN_WORKER_PACKAGE_SUGGESTS "shardfc-cuda")
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS ON)
set(CPACK_COMPONENT_DEV_DEPENDS lib)
# Programs that are linked with the library want it in this version or a later one of the same soname.
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS_POLICY ">=")
set(CPACK_DEBIAN_LIB_PACKAGE_CONTROL_EXTRA "${deploy}/lib/triggers")
# NVIDIA's libraries are no Debian packages everywhere.
set(CPACK_DEBIAN_CUDA_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_CUDA_PACKAGE_DEPENDS "shardfc-server (= ${SFC_PACKAGE_VERSION}) | shardfc-worker (= ${SFC_PACKAGE_VERSION}), libc6 (>= 2.36)")
set(CPACK_DEBIAN_CUDA_PACKAGE_RECOMMENDS "libcublas-13-0, libcudnn9-cuda-13")
include(CPack)
