# Files that become part of a program.
#
# sfc_embed(LIBRARY NAME FOLDER FILE...): files of FOLDER (relative to here) in the library as
#     const struct sfc_http_file NAME[]; const size_t NAME_count;
# (proto/http.h). index.html is served as /. The tag of a file follows from its bytes.
function(sfc_embed library name folder)
  set(out ${CMAKE_BINARY_DIR}/generated/${name}.c)
  set(files ${ARGN})
  list(TRANSFORM files PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/)
  add_custom_command(
    OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DNAME=${name} -DOUT=${out} "-DFILES=${files}" -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
    DEPENDS ${files} ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
    VERBATIM)
  target_sources(${library} PRIVATE ${out})
endfunction()
