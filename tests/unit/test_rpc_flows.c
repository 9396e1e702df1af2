/* How much of requests that are not complete each connection has: accounts, with no connection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/rpc_flows.h"

enum { PLACES = 4, NO_LIMIT = 1 << 30 };

/* What came over each connection; gone: -1. */
struct scene {
    struct sfc_rpc_peers *peers;
    struct sfc_rpc_flows *flows;
    struct sfc_rpc_peer *a, *b;
    struct sfc_rpc_place places[PLACES];
    int64_t came[PLACES];
    uint64_t known[PLACES]; /* of these, when a call begins */
    uint64_t now;
};

static void scene_start(struct scene *scene)
{
    const struct sfc_peer_limits limits = {.calls = 1000};
    struct sfc_error err = {0};
    *scene =
        (struct scene){.peers = sfc_rpc_peers_new(), .flows = sfc_rpc_flows_new(), .now = 1000000};
    for (uint16_t i = 0; i < PLACES; i++) {
        scene->places[i] = (struct sfc_rpc_place){.address = {[15] = 1}, .port = (uint16_t)(1 + i)};
    }
    assert_int_equal(sfc_rpc_peers_enter(scene->peers, "a", &limits, 0, &scene->a, &err), SFC_OK);
    assert_int_equal(sfc_rpc_peers_enter(scene->peers, "b", &limits, 0, &scene->b, &err), SFC_OK);
}

static void scene_end(struct scene *scene)
{
    sfc_rpc_flows_free(scene->flows);
    sfc_rpc_peers_leave(scene->peers, scene->a);
    sfc_rpc_peers_leave(scene->peers, scene->b);
    sfc_rpc_peers_free(scene->peers);
}

static bool came(void *ctx, const struct sfc_rpc_place *place, uint64_t *bytes)
{
    const struct scene *scene = ctx;
    *bytes = (uint64_t)scene->came[place->port - 1];
    return scene->came[place->port - 1] >= 0;
}

static void look(struct scene *scene)
{
    sfc_rpc_flows_look(scene->flows, scene->now, came, scene);
}

static struct sfc_rpc_incoming begin(struct scene *scene, int at, struct sfc_rpc_peer *peer)
{
    struct sfc_rpc_incoming incoming = {0};
    sfc_rpc_flows_begin(scene->flows, &scene->places[at], scene->known[at], peer, &incoming);
    assert_non_null(incoming.flow);
    return incoming;
}

/* What the peer that has most has now. */
static uint64_t most_of(struct scene *scene)
{
    struct sfc_rpc_excess excess;
    look(scene);
    return sfc_rpc_flows_excess(scene->flows, 0, NO_LIMIT, &excess) ? excess.bytes : 0;
}

static void test_waiting(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    struct sfc_rpc_incoming one = begin(&s, 0, s.a), two = begin(&s, 0, s.a);
    s.came[0] = 1000;
    assert_int_equal(most_of(&s), 1000);
    s.came[0] = 5000;
    sfc_rpc_flows_end(&one, 3000);
    assert_int_equal(most_of(&s), 2000);
    sfc_rpc_flows_end(&two, 2000);
    assert_int_equal(most_of(&s), 0);
    struct sfc_rpc_incoming three = begin(&s, 0, s.a);
    assert_int_equal(most_of(&s), 0); /* nothing of it came */
    s.came[0] = 5100;
    assert_int_equal(most_of(&s), 100);
    sfc_rpc_flows_end(&three, 0);
    assert_int_equal(most_of(&s), 0);
    scene_end(&s);
}

/* Calls overlap without end, so that some message is always on its way: what is complete, given up
 * or nobody's message doesn't add up. */
static void test_overlapping(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    struct sfc_rpc_incoming before = begin(&s, 0, s.a);
    for (int i = 0; i < 1000; i++) {
        struct sfc_rpc_incoming next = begin(&s, 0, s.a);
        s.came[0] += 1000 + 50; /* half of each comes before its sister is complete; headers */
        assert_in_range(most_of(&s), 500, 3 * 1050);
        sfc_rpc_flows_end(&before, i % 3 == 0 ? 0 : 1000);
        before = next;
        most_of(&s);
    }
    sfc_rpc_flows_end(&before, 0);
    assert_int_equal(most_of(&s), 0);
    scene_end(&s);
}

/* Never less than what is there: one that stands still among many that come and go. */
static void test_one_stands_still(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    struct sfc_rpc_incoming stands = begin(&s, 0, s.a);
    s.came[0] = 700;
    for (int i = 0; i < 100; i++) {
        struct sfc_rpc_incoming next = begin(&s, 0, s.a);
        s.came[0] += 10000;
        if (i % 2 == 0) {
            assert_int_equal(most_of(&s), 10700);
        }
        sfc_rpc_flows_end(&next, 10000);
        assert_int_equal(most_of(&s), 700);
    }
    sfc_rpc_flows_end(&stands, 700);
    assert_int_equal(most_of(&s), 0);
    scene_end(&s);
}

/* Pieces of a message that takes long may hold all that came beside it. */
static void test_one_takes_long(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    struct sfc_rpc_incoming takes_long = begin(&s, 0, s.a);
    s.came[0] = 10;
    for (int i = 0; i < 70; i++) {
        struct sfc_rpc_incoming next = begin(&s, 0, s.a);
        s.came[0] += 1000;
        sfc_rpc_flows_end(&next, 1000);
        assert_int_equal(most_of(&s), i <= 50 ? 10 : s.came[0]);
        s.now += 100;
    }
    sfc_rpc_flows_end(&takes_long, 10);
    struct sfc_rpc_incoming last = begin(&s, 0, s.a);
    most_of(&s); /* last is of the generation that came beside the long one */
    struct sfc_rpc_incoming next = begin(&s, 0, s.a);
    sfc_rpc_flows_end(&last, 0);
    s.came[0] += 5;
    assert_int_equal(most_of(&s), 5);
    sfc_rpc_flows_end(&next, 5);
    assert_int_equal(most_of(&s), 0);
    scene_end(&s);
}

/* A large message that began before a generation and ends in it is no excess of those after it. */
static void test_end_in_the_next_generation(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    struct sfc_rpc_incoming large = begin(&s, 0, s.a);
    s.came[0] = 1000;
    assert_int_equal(most_of(&s), 1000); /* a generation: large alone is older */
    struct sfc_rpc_incoming small = begin(&s, 0, s.a);
    s.came[0] = 100010;
    assert_int_equal(most_of(&s), 100010);
    sfc_rpc_flows_end(&large, 100000);
    assert_int_equal(most_of(&s), 10);
    assert_int_equal(most_of(&s), 10);
    sfc_rpc_flows_end(&small, 10);
    assert_int_equal(most_of(&s), 0);
    scene_end(&s);
}

/* The counts are older than the messages: what was complete before a look is no excess after it. */
static void test_counts_of_a_moment_ago(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    struct sfc_rpc_incoming large = begin(&s, 0, s.a);
    s.came[0] = 10;
    assert_int_equal(most_of(&s), 10);
    sfc_rpc_flows_end(&large, 100000);
    assert_int_equal(most_of(&s), 0); /* nothing waits */
    struct sfc_rpc_incoming small = begin(&s, 0, s.a);
    assert_int_equal(most_of(&s), 0);
    s.came[0] = 100005;
    assert_int_equal(most_of(&s), 5);
    sfc_rpc_flows_end(&small, 5);
    assert_int_equal(most_of(&s), 0);
    scene_end(&s);
}

/* A connection that is not in the list yet when its first message is complete. */
static void test_not_seen_yet(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    s.came[0] = -1;
    struct sfc_rpc_incoming large = begin(&s, 0, s.a);
    sfc_rpc_flows_end(&large, 100000);
    assert_int_equal(most_of(&s), 0);
    struct sfc_rpc_incoming small = begin(&s, 0, s.a);
    s.came[0] = 100005;
    assert_int_equal(most_of(&s), 5);
    sfc_rpc_flows_end(&small, 5);
    assert_int_equal(most_of(&s), 0);
    s.came[0] = -1;
    look(&s);
    assert_int_equal(sfc_rpc_flows_count(s.flows), 0);
    large = begin(&s, 1, s.a); /* one that nobody ever sees is forgotten, too */
    s.came[1] = -1;
    sfc_rpc_flows_end(&large, 1);
    look(&s);
    assert_int_equal(sfc_rpc_flows_count(s.flows), 1);
    s.now += 60000;
    look(&s);
    assert_int_equal(sfc_rpc_flows_count(s.flows), 0);
    scene_end(&s);
}

/* An old connection's first call that is counted: the ones before were refused, or the list was
 * empty for a moment and the connection forgotten. */
static void test_old_connection(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    s.known[0] = 1000000;
    struct sfc_rpc_incoming one = begin(&s, 0, s.a);
    s.came[0] = 1000007;
    assert_int_equal(most_of(&s), 7);
    sfc_rpc_flows_end(&one, 7);
    s.came[0] = -1;
    look(&s);
    assert_int_equal(sfc_rpc_flows_count(s.flows), 0);
    s.known[0] = 2000000;
    one = begin(&s, 0, s.a);
    s.came[0] = 2000003;
    assert_int_equal(most_of(&s), 3);
    sfc_rpc_flows_end(&one, 3);
    scene_end(&s);
}

static void test_who_has_too_much(void **state)
{
    (void)state;
    struct scene s;
    struct sfc_rpc_excess excess;
    scene_start(&s);
    struct sfc_rpc_incoming calls[PLACES];
    for (int i = 0; i < PLACES; i++) {
        calls[i] = begin(&s, i, i < 3 ? s.a : s.b);
    }
    memcpy(s.came, (int64_t[]){10, 40, 30, 60}, sizeof s.came);
    look(&s);
    assert_false(sfc_rpc_flows_excess(s.flows, 80, 140, &excess));
    assert_true(sfc_rpc_flows_excess(s.flows, 79, 140, &excess)); /* a: its largest connection */
    assert_ptr_equal(excess.peer, s.a);
    assert_int_equal(excess.place.port, 2);
    assert_int_equal(excess.bytes, 80);
    assert_int_equal(excess.limit, 79);
    assert_false(sfc_rpc_flows_excess(s.flows, 79, 140, &excess)); /* that is enough */
    look(&s);
    assert_true(sfc_rpc_flows_excess(s.flows, 100, 139, &excess)); /* all: a has most */
    assert_ptr_equal(excess.peer, s.a);
    assert_int_equal(excess.limit, 0);
    assert_false(sfc_rpc_flows_excess(s.flows, 100, 139, &excess));
    assert_true(sfc_rpc_flows_excess(s.flows, 100, 99, &excess)); /* now b */
    assert_int_equal(excess.place.port, 4);
    for (int i = 0; i < PLACES; i++) {
        sfc_rpc_flows_end(&calls[i], 0);
    }
    scene_end(&s);
}

/* Connections that end are forgotten, their calls or not; their place may be another's then. */
static void test_gone(void **state)
{
    (void)state;
    struct scene s;
    scene_start(&s);
    struct sfc_rpc_incoming one = begin(&s, 0, s.a), two = begin(&s, 1, s.b);
    s.came[0] = s.came[1] = 5000;
    assert_int_equal(most_of(&s), 5000);
    s.came[0] = s.came[1] = -1;
    assert_int_equal(most_of(&s), 0);
    assert_int_equal(sfc_rpc_flows_count(s.flows), 2);
    sfc_rpc_flows_end(&one, 0);
    look(&s);
    assert_int_equal(sfc_rpc_flows_count(s.flows), 1);
    s.came[1] = 30; /* a new one */
    assert_int_equal(most_of(&s), 30);
    sfc_rpc_flows_end(&two, 0);
    assert_int_equal(most_of(&s), 0);
    s.came[1] = -1;
    look(&s);
    assert_int_equal(sfc_rpc_flows_count(s.flows), 0);
    scene_end(&s);
}

/* A peer with a connection is not forgotten, however many come. */
static void test_peers_stay(void **state)
{
    (void)state;
    const struct sfc_peer_limits limits = {.calls = 2};
    struct scene s;
    struct sfc_rpc_peer *peer, *again;
    struct sfc_error err = {0};
    scene_start(&s);
    assert_int_equal(sfc_rpc_peers_enter(s.peers, "stays", &limits, 0, &peer, &err), SFC_OK);
    struct sfc_rpc_incoming one = begin(&s, 0, peer);
    sfc_rpc_flows_end(&one, 0);
    sfc_rpc_peers_leave(s.peers, peer);
    sfc_rpc_peer_refuse(peer, 1500);
    for (int i = 0; i < 10000; i++) {
        char name[32];
        snprintf(name, sizeof name, "peer %d", i);
        assert_int_equal(sfc_rpc_peers_enter(s.peers, name, &limits, 0, &again, &err), SFC_OK);
        sfc_rpc_peers_leave(s.peers, again);
    }
    assert_int_equal(sfc_rpc_peers_enter(s.peers, "stays", &limits, 499, &again, &err), SFC_ELIMIT);
    assert_string_equal(err.text, "stays has sent too much of requests that it did not complete "
                                  "(--peer-memory): try again in 2 s");
    assert_int_equal(sfc_rpc_peers_enter(s.peers, "stays", &limits, 1500, &again, &err), SFC_OK);
    assert_ptr_equal(again, peer);
    sfc_rpc_peers_leave(s.peers, again);
    scene_end(&s);
}

static void test_places(void **state)
{
    (void)state;
    struct sfc_rpc_place four, six;
    assert_true(sfc_rpc_place_read("ipv4:10.0.0.1:5000", &four));
    assert_memory_equal(four.address, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\1", 16);
    assert_int_equal(four.port, 5000);
    assert_true(sfc_rpc_place_read("ipv6:%5Bfe80::1%25eth0%5D:65535", &six));
    assert_memory_equal(six.address, "\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16);
    assert_int_equal(six.port, 65535);
    assert_true(sfc_rpc_place_compare(&four, &six) < 0);
    assert_int_equal(sfc_rpc_place_compare(&six, &six), 0);
    assert_false(sfc_rpc_place_read("unix:/run/x", &six));
    assert_false(sfc_rpc_place_read("", &six));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waiting),
        cmocka_unit_test(test_overlapping),
        cmocka_unit_test(test_one_stands_still),
        cmocka_unit_test(test_one_takes_long),
        cmocka_unit_test(test_end_in_the_next_generation),
        cmocka_unit_test(test_counts_of_a_moment_ago),
        cmocka_unit_test(test_not_seen_yet),
        cmocka_unit_test(test_old_connection),
        cmocka_unit_test(test_who_has_too_much),
        cmocka_unit_test(test_gone),
        cmocka_unit_test(test_peers_stay),
        cmocka_unit_test(test_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
