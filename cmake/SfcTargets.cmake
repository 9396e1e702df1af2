# How a ShardFC target is declared. Link targets carry the rule "dependencies point downwards":
# a library sees the headers of what it links and of nothing else.
set(SFC_WARNINGS -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -Wformat=2 -Wvla -Wundef -Werror)

# Host code in device files is warned about as well; nvcc writes code of its own, which more would hit.
set(SFC_CUDA_FLAGS -std=c++20 -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas,-Werror,-ffp-contract=off,-fno-omit-frame-pointer)

function(sfc_settings target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:${SFC_WARNINGS}>)
  # The same source gives the same bits in every translation unit: no contraction by the compiler.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off -fno-omit-frame-pointer>)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${SFC_CUDA_FLAGS}>)
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE SFC_VERSION="${PROJECT_VERSION}")
  if(SFC_FUZZ) # every library tells the fuzzer which branches it took
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
    target_link_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
  if(SFC_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${SFC_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${SFC_SANITIZE})
  endif()
endfunction()

# sfc_library(NAME SOURCES ... LINK ...): a static library whose headers are included from the top
# of the repository ("proto/base/status.h").
function(sfc_library name)
  cmake_parse_arguments(A "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${A_LINK} PRIVATE ${A_PRIVATE_LINK})
  sfc_settings(${name})
endfunction()

# sfc_proto(NAME FILE): the messages of a .proto file, given from the top of the repository, as a library.
function(sfc_proto name file)
  string(REGEX REPLACE "\\.proto$" ".pb-c" stem ${CMAKE_BINARY_DIR}/generated/${file})
  add_custom_command(
    OUTPUT ${stem}.c ${stem}.h
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/generated
    COMMAND ${PROTOC_C} --proto_path=${CMAKE_SOURCE_DIR} --c_out=${CMAKE_BINARY_DIR}/generated ${file}
    DEPENDS ${CMAKE_SOURCE_DIR}/${file}
    VERBATIM)
  add_library(${name} STATIC ${stem}.c)
  target_include_directories(${name} SYSTEM PUBLIC ${CMAKE_BINARY_DIR}/generated)
  target_link_libraries(${name} PUBLIC PkgConfig::PROTOBUF_C)
endfunction()

function(sfc_program name)
  cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_LINK})
  sfc_settings(${name})
endfunction()

# What every test that runs our programs needs; read by ThreadSanitizer alone. Calls that libraries make
# which it didn't compile are not looked at: it can't see how these keep order, and to suppress every report
# of theirs takes more time than the test (test_rpc 50 s instead of 3). Races between accesses that our code
# makes itself are reported as ever; one against what a library reads for us (a buffer that SQLite binds) isn't.
set(SFC_TSAN_ENVIRONMENT
    TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp:ignore_noninstrumented_modules=1)

# sfc_test(NAME LABELS ... SOURCES ... LINK ... [TIMEOUT seconds]): a cmocka program = a ctest entry.
function(sfc_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;LINK;LABELS;ARGS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_LINK} PkgConfig::CMOCKA m)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if((SFC_SANITIZE MATCHES thread AND "single" IN_LIST A_LABELS) OR (SFC_SANITIZE AND "slow" IN_LIST A_LABELS)) # not run there
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  sfc_settings(${name})
  add_test(NAME ${name} COMMAND ${name} ${A_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${A_TIMEOUT}
                       SKIP_RETURN_CODE 77)
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "${SFC_TSAN_ENVIRONMENT}")
endfunction()

# sfc_planted_test(NAME BUG SOURCES ... FROM ... LINK ... LABELS ... ARGS ...): a test of libraries that have known bug
# number BUG. Of the libraries' files FROM those that mention it are compiled anew with SFC_PLANT_BUG=BUG and come
# before the libraries' own; all the others are the libraries' as they are.
function(sfc_planted_test name bug)
  cmake_parse_arguments(A "" "" "SOURCES;FROM;LINK;LABELS;ARGS" ${ARGN})
  set(planted)
  foreach(source ${A_FROM})
    file(READ ${source} text)
    if(text MATCHES "SFC_PLANT_BUG [!=]= ")
      set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    endif()
    if(text MATCHES "SFC_PLANT_BUG [!=]= ${bug}[^0-9]")
      list(APPEND planted ${source})
    endif()
  endforeach()
  if(NOT planted)
    message(FATAL_ERROR "${name}: no file mentions SFC_PLANT_BUG == ${bug}")
  endif()
  sfc_test(${name} SOURCES ${A_SOURCES} ${planted} LINK ${A_LINK} LABELS ${A_LABELS} ARGS ${A_ARGS})
  target_compile_definitions(${name} PRIVATE SFC_PLANT_BUG=${bug})
endfunction()

# sfc_fuzz(NAME CORPUS ... LINK ... [RUNS number] [MALLOC_MB most]): tests/fuzz/NAME.c as a libFuzzer
# program (needs clang), run so many times, or else for SFC_FUZZ_SECONDS, over the committed corpus (read
# only) and over what earlier runs found. MALLOC_MB: no single allocation is larger.
set(SFC_FUZZ_SECONDS 20 CACHE STRING "seconds of each libFuzzer target in ctest")
if(SFC_FUZZ)
  add_custom_target(fuzz_targets) # all of them, and nothing else of the preset
endif()
function(sfc_fuzz name)
  cmake_parse_arguments(A "" "CORPUS;RUNS;MALLOC_MB" "LINK" ${ARGN})
  add_executable(${name} ${name}.c)
  target_link_libraries(${name} PRIVATE ${A_LINK})
  sfc_settings(${name})
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  set(found ${CMAKE_BINARY_DIR}/fuzz/${A_CORPUS})
  file(MAKE_DIRECTORY ${found})
  math(EXPR limit "${SFC_FUZZ_SECONDS} + 60")
  set(flags -max_total_time=${SFC_FUZZ_SECONDS})
  if(A_RUNS)
    set(flags -runs=${A_RUNS})
    set(limit 600)
  endif()
  if(A_MALLOC_MB)
    list(APPEND flags -malloc_limit_mb=${A_MALLOC_MB})
  endif()
  add_test(NAME ${name} COMMAND ${name} ${flags} -timeout=10 -rss_limit_mb=1024
           -artifact_prefix=${found}/ ${found} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${A_CORPUS})
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT ${limit})
  add_dependencies(fuzz_targets ${name})
endfunction()
