/* Where backends that are plugins come from, and every way in which they can be wrong
 * (kernels/plugin.h). argv: the folder with a folder for each fake plugin. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/backend.h"

static char plugins[3000];

/* Opens `name` with the plugins of one folder; the message has all the words. */
static void refused(const char *name, const char *folder, const char *const *words)
{
    char path[4096];
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    snprintf(path, sizeof path, "%s/%s", plugins, folder);
    setenv("SFC_PLUGIN_DIR", path, 1);
    assert_int_equal(sfc_backend_open(name, 3, &backend, &err), SFC_EUNSUPPORTED);
    assert_int_equal(err.code, SFC_EUNSUPPORTED);
    assert_null(backend);
    for (size_t i = 0; words[i]; i++) {
        if (!strstr(err.text, words[i])) {
            fail_msg("%s from %s: no '%s' in '%s'", name, folder, words[i], err.text);
        }
    }
}
#define REFUSED(name, folder, ...) refused(name, folder, (const char *const[]){__VA_ARGS__, NULL})

static void test_device_and_threads_reach_the_plugin(void **state)
{
    (void)state;
    REFUSED("cuda", "right", "03");
    REFUSED("cuda:0", "right", "03");
    REFUSED("cuda:7", "right", "73");
}

static void test_names_that_are_no_device(void **state)
{
    (void)state;
    static const char *const names[] = {"cuda:",   "cuda:x",     "cuda:-1",   "cuda:1x",
                                        "cuda: 1", "cuda:99999", "cuda:1024", "cuda:4294967296"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        REFUSED(names[i], "right", names[i], "cuda:N", "1023");
    }
    REFUSED("cudax", "right", "unknown backend 'cudax'");
}

static void test_wrong_plugins_say_what_is_wrong(void **state)
{
    (void)state;
    REFUSED("cuda", "old", "old/libshardfc-cuda.so", "version", "from one build");
    REFUSED("cuda", "resized", "resized/libshardfc-cuda.so", "layout", "from one build");
    REFUSED("cuda", "foreign", "foreign/libshardfc-cuda.so", "sfc_backend_plugin", "no plugin");
    REFUSED("cuda", "needy", "needy/libshardfc-cuda.so", "sfc_nobody_has_this", "install");
    REFUSED("cuda", "nowhere", "nowhere", "SFC_PLUGIN_DIR");
}

static void test_a_file_that_is_no_library(void **state)
{
    (void)state;
    char dir[] = "/tmp/sfc_plugin_XXXXXX", path[64];
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/libshardfc-cuda.so", dir);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("no library", file);
    fclose(file);
    setenv("SFC_PLUGIN_DIR", dir, 1);
    assert_int_equal(sfc_backend_open("cuda", 1, &backend, &err), SFC_EUNSUPPORTED);
    assert_non_null(strstr(err.text, path));
    assert_non_null(strstr(err.text, "can't be loaded"));
    unlink(path);
    rmdir(dir);
}

/* A plugin in the working directory, or in lib/ there, is never taken. */
static void test_the_working_directory_does_not_count(void **state)
{
    (void)state;
    char dir[4096], here[4096];
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    assert_non_null(getcwd(here, sizeof here));
    snprintf(dir, sizeof dir, "%s/right", plugins);
    assert_int_equal(chdir(dir), 0);
    setenv("SFC_PLUGIN_DIR", ".", 1);
    assert_int_equal(sfc_backend_open("cuda", 3, &backend, &err), SFC_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "absolute"));
    setenv("SFC_PLUGIN_DIR", "", 1);
    assert_int_equal(sfc_backend_open("cuda", 3, &backend, &err), SFC_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "absolute"));
    unsetenv("SFC_PLUGIN_DIR");
    err = (struct sfc_error){0};
    int rc = sfc_backend_open("cuda", 3, &backend, &err);
    assert_string_not_equal(err.text, "03"); /* what the plugin of this folder says */
    if (rc == SFC_OK) { /* that of this build, on a machine that has a device */
        sfc_backend_close(backend);
    }
    assert_int_equal(chdir(here), 0);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    snprintf(plugins, sizeof plugins, "%s", argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_and_threads_reach_the_plugin),
        cmocka_unit_test(test_names_that_are_no_device),
        cmocka_unit_test(test_wrong_plugins_say_what_is_wrong),
        cmocka_unit_test(test_a_file_that_is_no_library),
        cmocka_unit_test(test_the_working_directory_does_not_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
