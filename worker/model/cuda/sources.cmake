# Device lanes, but for the products: the plugin and the tests on emulated devices both have them.
set(SFC_LANE_SOURCES gpu.c layout.c lane.c)
set(SFC_LANE_KERNELS convert.cu norm.cu window.cu plain.cu)
list(TRANSFORM SFC_LANE_SOURCES PREPEND ${CMAKE_SOURCE_DIR}/worker/model/cuda/)
list(TRANSFORM SFC_LANE_KERNELS PREPEND ${CMAKE_SOURCE_DIR}/worker/model/cuda/)
