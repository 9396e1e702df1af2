# cmake -DNAME=name -DOUT=file.c -DFILES=a;b -P embed.cmake: see SfcEmbed.cmake.
set(TYPE_html "text/html; charset=utf-8")
set(TYPE_css "text/css; charset=utf-8")
set(TYPE_js "text/javascript; charset=utf-8")
set(TYPE_svg "image/svg+xml")

set(arrays "")
set(table "")
set(count 0)
foreach(file ${FILES})
  get_filename_component(leaf ${file} NAME)
  string(REGEX REPLACE ".*\\." "" ending ${leaf})
  if(NOT DEFINED TYPE_${ending})
    message(FATAL_ERROR "${leaf}: of which type is that?")
  endif()
  file(SHA256 ${file} digest)
  string(SUBSTRING ${digest} 0 24 digest)
  file(READ ${file} bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(APPEND arrays "static const unsigned char file${count}[] = {\n${bytes}\n};\n")
  if(leaf STREQUAL "index.html")
    set(path "/")
  else()
    set(path "/${leaf}")
  endif()
  string(APPEND table "    {\"${path}\", \"${TYPE_${ending}}\", \"\\\"${digest}\\\"\", file${count}, sizeof file${count}},\n")
  math(EXPR count "${count} + 1")
endforeach()
file(WRITE ${OUT} "#include \"proto/http.h\"
extern const struct sfc_http_file ${NAME}[];
extern const size_t ${NAME}_count;
${arrays}
const struct sfc_http_file ${NAME}[] = {
${table}};
const size_t ${NAME}_count = sizeof ${NAME} / sizeof *${NAME};
")
