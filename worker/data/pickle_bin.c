#include "worker/data/pickle_bin.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/file.h"

#define FILE_LIMIT (4ULL << 30)

/* Every opcode that has a name: X(byte, name). Those without a case in step() are refused. */
/* clang-format off */
#define OPCODES(X) \
    X('(', MARK) X(')', EMPTY_TUPLE) \
    X('.', STOP) X('0', POP) X('1', POP_MARK) X('2', DUP) X('F', FLOAT) X('I', INT) \
    X('J', BININT) X('K', BININT1) X('L', LONG) X('M', BININT2) X('N', NONE) X('P', PERSID) \
    X('Q', BINPERSID) X('R', REDUCE) X('S', STRING) X('T', BINSTRING) X('U', SHORT_BINSTRING) \
    X('V', UNICODE) X('X', BINUNICODE) X('a', APPEND) X('b', BUILD) X('c', GLOBAL) X('d', DICT) \
    X('}', EMPTY_DICT) X('e', APPENDS) X('g', GET) X('h', BINGET) X('i', INST) \
    X('j', LONG_BINGET) X('l', LIST) X(']', EMPTY_LIST) X('o', OBJ) X('p', PUT) X('q', BINPUT) \
    X('r', LONG_BINPUT) X('s', SETITEM) X('t', TUPLE) X('u', SETITEMS) X('G', BINFLOAT) \
    X(0x80, PROTO) X(0x81, NEWOBJ) X(0x82, EXT1) X(0x83, EXT2) X(0x84, EXT4) X(0x85, TUPLE1) \
    X(0x86, TUPLE2) X(0x87, TUPLE3) X(0x88, NEWTRUE) X(0x89, NEWFALSE) X(0x8a, LONG1) \
    X(0x8b, LONG4) X('B', BINBYTES) X('C', SHORT_BINBYTES) X(0x8c, SHORT_BINUNICODE) \
    X(0x8d, BINUNICODE8) X(0x8e, BINBYTES8) X(0x8f, EMPTY_SET) X(0x90, ADDITEMS) \
    X(0x91, FROZENSET) X(0x92, NEWOBJ_EX) X(0x93, STACK_GLOBAL) X(0x94, MEMOIZE) X(0x95, FRAME) \
    X(0x96, BYTEARRAY8) X(0x97, NEXT_BUFFER) X(0x98, READONLY_BUFFER)
/* clang-format on */

enum opcode {
#define X(byte, name) OP_##name = byte,
    OPCODES(X)
#undef X
};

static const char *opcode_name(uint8_t byte)
{
    switch (byte) {
#define X(value, name)                                                                             \
    case value:                                                                                    \
        return #name;
        OPCODES(X)
#undef X
    default:
        return "unknown";
    }
}

enum kind { KIND_MARK, KIND_LIST, KIND_TUPLE, KIND_BYTES, KIND_BOOL, KIND_INT };

static const char *const kind_names[] = {"a mark", "a list",    "a tuple",
                                         "bytes",  "a boolean", "an integer"};

struct vector {
    uint32_t *items;
    uint32_t count, capacity;
};

struct node {
    enum kind kind;
    union {
        struct vector list; /* lists and tuples */
        struct sfc_bytes bytes;
        int64_t number; /* booleans and integers */
    } as;
};

struct machine {
    const uint8_t *data;
    size_t length, at;
    size_t op_at; /* of the opcode being run, for messages */
    struct node *nodes;
    uint32_t node_count, node_capacity, node_limit;
    struct vector stack, memo;
    uint8_t *unescaped;
    size_t unescaped_used;
    bool stopped;
    struct sfc_error *err;
};

enum { NODE_FALSE, NODE_TRUE, NODE_MARK, NODE_FIRST_FREE };
#define NO_NODE UINT32_MAX

static int corrupt(struct machine *m, const char *what)
{
    return sfc_fail(m->err, SFC_ECORRUPT, "pickle: %s at byte %zu (%s)", what, m->op_at,
                    opcode_name(m->data[m->op_at]));
}

static int no_memory(struct machine *m)
{
    return sfc_fail(m->err, SFC_ENOMEM, "pickle: no memory at byte %zu", m->op_at);
}

static int push_item(struct machine *m, struct vector *v, uint32_t item)
{
    if (v->count == v->capacity) {
        uint32_t capacity = v->capacity * 2 + 4;
        uint32_t *items = realloc(v->items, (size_t)capacity * sizeof *items);
        if (items == NULL)
            return no_memory(m);
        v->items = items;
        v->capacity = capacity;
    }
    v->items[v->count++] = item;
    return SFC_OK;
}

static int new_node(struct machine *m, struct node node, uint32_t *out)
{
    if (m->node_count == m->node_limit)
        return sfc_fail(m->err, SFC_ELIMIT,
                        "pickle: more than %u objects in %zu bytes (at byte %zu)", m->node_limit,
                        m->length, m->op_at);
    if (m->node_count == m->node_capacity) {
        uint32_t capacity = m->node_capacity * 2 + 64;
        struct node *nodes = realloc(m->nodes, capacity * sizeof *nodes);
        if (nodes == NULL)
            return no_memory(m);
        m->nodes = nodes;
        m->node_capacity = capacity;
    }
    m->nodes[m->node_count] = node;
    *out = m->node_count++;
    return SFC_OK;
}

static int push_new(struct machine *m, struct node node)
{
    uint32_t index = 0;
    int rc = new_node(m, node, &index);
    return rc == SFC_OK ? push_item(m, &m->stack, index) : rc;
}

static int push_number(struct machine *m, int64_t value)
{
    return push_new(m, (struct node){.kind = KIND_INT, .as.number = value});
}

static int push_container(struct machine *m, enum kind kind)
{
    return push_new(m, (struct node){.kind = kind});
}

/* The next n bytes. */
static int take(struct machine *m, size_t n, const uint8_t **out)
{
    if (n > m->length - m->at)
        return corrupt(m, "the file ends inside an argument");
    *out = m->data + m->at;
    m->at += n;
    return SFC_OK;
}

/* A little-endian unsigned number of n <= 8 bytes. */
static int take_number(struct machine *m, size_t n, uint64_t *out)
{
    const uint8_t *p = NULL;
    int rc = take(m, n, &p);
    if (rc != SFC_OK)
        return rc;
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++)
        value |= (uint64_t)p[i] << (8 * i);
    *out = value;
    return SFC_OK;
}

/* The rest of a line, without its end. */
static int take_line(struct machine *m, const char **text, size_t *length)
{
    const uint8_t *start = m->data + m->at;
    const uint8_t *end = memchr(start, '\n', m->length - m->at);
    if (end == NULL)
        return corrupt(m, "the file ends inside a line");
    *text = (const char *)start;
    *length = (size_t)(end - start);
    m->at += *length + 1;
    return SFC_OK;
}

static int parse_decimal(struct machine *m, const char *text, size_t length, int64_t *out)
{
    bool negative = length > 0 && text[0] == '-';
    int64_t value = 0;
    size_t i = negative ? 1 : 0;
    if (i == length || length > 18)
        return corrupt(m, "not a number");
    for (; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return corrupt(m, "not a number");
        value = value * 10 + (text[i] - '0');
    }
    *out = negative ? -value : value;
    return SFC_OK;
}

static int push_bytes(struct machine *m, size_t prefix)
{
    uint64_t length = 0;
    const uint8_t *p = NULL;
    int rc = take_number(m, prefix, &length);
    if (rc == SFC_OK && length > m->length - m->at)
        rc = corrupt(m, "a byte string reaches over the end of the file");
    if (rc == SFC_OK)
        rc = take(m, (size_t)length, &p);
    if (rc == SFC_OK)
        rc = push_new(m, (struct node){.kind = KIND_BYTES, .as.bytes = {p, (size_t)length}});
    return rc;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One escape sequence after the backslash at text[*i]; *i moves behind it. */
static int unescape(struct machine *m, const char *text, size_t end, size_t *i, uint8_t *out)
{
    static const char from[] = "\\'\"nrt", to[] = "\\'\"\n\r\t";
    char c = *i < end ? text[(*i)++] : 0;
    const char *found = c != 0 ? strchr(from, c) : NULL;
    if (found != NULL) {
        *out = (uint8_t)to[found - from];
        return SFC_OK;
    }
    int high = c == 'x' && *i + 2 <= end ? hex_digit(text[*i]) : -1;
    int low = high >= 0 ? hex_digit(text[*i + 1]) : -1;
    if (low < 0)
        return corrupt(m, "unknown escape in a string");
    *i += 2;
    *out = (uint8_t)(high * 16 + low);
    return SFC_OK;
}

static int push_string_line(struct machine *m)
{
    const char *text = NULL;
    size_t length = 0;
    int rc = take_line(m, &text, &length);
    if (rc != SFC_OK)
        return rc;
    if (length < 2 || (text[0] != '\'' && text[0] != '"') || text[length - 1] != text[0])
        return corrupt(m, "a string without quotes");
    if (m->unescaped == NULL && (m->unescaped = malloc(m->length)) == NULL)
        return no_memory(m);
    size_t start = m->unescaped_used; /* never longer than its source: fits */
    for (size_t i = 1; i < length - 1 && rc == SFC_OK;) {
        uint8_t byte = (uint8_t)text[i++];
        if (byte == '\\')
            rc = unescape(m, text, length - 1, &i, &byte);
        m->unescaped[m->unescaped_used++] = byte;
    }
    if (rc != SFC_OK)
        return rc;
    struct sfc_bytes bytes = {m->unescaped + start, m->unescaped_used - start};
    return push_new(m, (struct node){.kind = KIND_BYTES, .as.bytes = bytes});
}

static int push_int_line(struct machine *m)
{
    const char *text = NULL;
    size_t length = 0;
    int64_t value = 0;
    int rc = take_line(m, &text, &length);
    if (rc != SFC_OK)
        return rc;
    if (length == 2 && text[0] == '0' && (text[1] == '0' || text[1] == '1'))
        return push_item(m, &m->stack, text[1] == '1' ? NODE_TRUE : NODE_FALSE);
    rc = parse_decimal(m, text, length, &value);
    return rc == SFC_OK ? push_number(m, value) : rc;
}

static int push_long1(struct machine *m)
{
    uint64_t n = 0, bits = 0;
    int rc = take_number(m, 1, &n);
    if (rc == SFC_OK && n > 8)
        return corrupt(m, "an integer of more than 64 bits");
    if (rc == SFC_OK)
        rc = take_number(m, (size_t)n, &bits);
    if (rc != SFC_OK)
        return rc;
    if (n > 0 && n < 8 && (bits >> (8 * n - 1) & 1) != 0)
        bits |= ~0ULL << (8 * n);
    int64_t value;
    memcpy(&value, &bits, sizeof value);
    return push_number(m, value);
}

static int push_bin_int(struct machine *m, size_t bytes)
{
    uint64_t bits = 0;
    int rc = take_number(m, bytes, &bits);
    if (rc != SFC_OK)
        return rc;
    return push_number(m, bytes == 4 ? (int64_t)(int32_t)(uint32_t)bits : (int64_t)bits);
}

/* Position of the last mark on the stack. */
static int find_mark(struct machine *m, uint32_t *out)
{
    for (uint32_t i = m->stack.count; i-- > 0;)
        if (m->stack.items[i] == NODE_MARK) {
            *out = i;
            return SFC_OK;
        }
    return corrupt(m, "no mark on the stack");
}

/* Moves the stack's items from `first` on to the end of node `into` and cuts the stack at `cut`. */
static int move_items(struct machine *m, uint32_t into, uint32_t first, uint32_t cut)
{
    int rc = SFC_OK;
    for (uint32_t i = first; i < m->stack.count && rc == SFC_OK; i++)
        rc = push_item(m, &m->nodes[into].as.list, m->stack.items[i]);
    m->stack.count = cut;
    return rc;
}

/* APPEND and APPENDS: items from `first` on go to the list below `cut`. */
static int append_items(struct machine *m, uint32_t first, uint32_t cut)
{
    if (cut == 0 || m->nodes[m->stack.items[cut - 1]].kind != KIND_LIST)
        return corrupt(m, "append to something that is no list");
    return move_items(m, m->stack.items[cut - 1], first, cut);
}

static int append_one(struct machine *m)
{
    uint32_t n = m->stack.count;
    if (n < 2 || m->stack.items[n - 1] == NODE_MARK)
        return corrupt(m, "append without an item");
    return append_items(m, n - 1, n - 1);
}

static int append_marked(struct machine *m)
{
    uint32_t mark = 0;
    int rc = find_mark(m, &mark);
    return rc == SFC_OK ? append_items(m, mark + 1, mark) : rc;
}

/* A list or tuple of the items from `first` on replaces everything from `cut` on. */
static int collect(struct machine *m, enum kind kind, uint32_t first, uint32_t cut)
{
    uint32_t index = 0;
    int rc = new_node(m, (struct node){.kind = kind}, &index);
    if (rc == SFC_OK)
        rc = move_items(m, index, first, cut);
    return rc == SFC_OK ? push_item(m, &m->stack, index) : rc;
}

static int collect_marked(struct machine *m, enum kind kind)
{
    uint32_t mark = 0;
    int rc = find_mark(m, &mark);
    return rc == SFC_OK ? collect(m, kind, mark + 1, mark) : rc;
}

static int collect_last(struct machine *m, uint32_t items)
{
    uint32_t n = m->stack.count;
    for (uint32_t i = 1; i <= items; i++)
        if (i > n || m->stack.items[n - i] == NODE_MARK)
            return corrupt(m, "too few items for a tuple");
    return collect(m, KIND_TUPLE, n - items, n - items);
}

static int memo_put(struct machine *m, uint64_t index)
{
    if (m->stack.count == 0 || m->stack.items[m->stack.count - 1] == NODE_MARK)
        return corrupt(m, "nothing to remember");
    if (index > m->length) /* writers number from 0; every entry costs at least a byte */
        return corrupt(m, "memo index out of all proportion");
    int rc = SFC_OK;
    while (m->memo.count <= index && rc == SFC_OK)
        rc = push_item(m, &m->memo, NO_NODE);
    if (rc == SFC_OK)
        m->memo.items[index] = m->stack.items[m->stack.count - 1];
    return rc;
}

static int memo_get(struct machine *m, uint64_t index)
{
    if (index >= m->memo.count || m->memo.items[index] == NO_NODE)
        return corrupt(m, "a memo entry that was never set");
    return push_item(m, &m->stack, m->memo.items[index]);
}

static int memo_number(struct machine *m, size_t bytes, int (*use)(struct machine *, uint64_t))
{
    uint64_t index = 0;
    int rc = take_number(m, bytes, &index);
    return rc == SFC_OK ? use(m, index) : rc;
}

static int memo_line(struct machine *m, int (*use)(struct machine *, uint64_t))
{
    const char *text = NULL;
    size_t length = 0;
    int64_t index = 0;
    int rc = take_line(m, &text, &length);
    if (rc == SFC_OK)
        rc = parse_decimal(m, text, length, &index);
    if (rc == SFC_OK && index < 0)
        rc = corrupt(m, "negative memo index");
    return rc == SFC_OK ? use(m, (uint64_t)index) : rc;
}

static int check_protocol(struct machine *m)
{
    uint64_t version = 0;
    int rc = take_number(m, 1, &version);
    if (rc == SFC_OK && version > 5)
        rc = sfc_fail(m->err, SFC_EUNSUPPORTED, "pickle: protocol %" PRIu64 ", 0 to 5 are read",
                      version);
    return rc;
}

static int refuse(struct machine *m, uint8_t byte)
{
    return sfc_fail(m->err, SFC_EUNSUPPORTED,
                    "pickle: opcode %s (0x%02x) at byte %zu is refused: only lists, tuples, bytes, "
                    "booleans and integers are read",
                    opcode_name(byte), byte, m->op_at);
}

static int step(struct machine *m)
{
    uint64_t ignored = 0;
    m->op_at = m->at;
    uint8_t byte = m->data[m->at++];
    switch (byte) {
    case OP_PROTO:
        return check_protocol(m);
    case OP_FRAME: /* a hint for buffered readers */
        return take_number(m, 8, &ignored);
    case OP_STOP:
        m->stopped = true;
        return SFC_OK;
    case OP_MARK:
        return push_item(m, &m->stack, NODE_MARK);
    case OP_NEWTRUE:
        return push_item(m, &m->stack, NODE_TRUE);
    case OP_NEWFALSE:
        return push_item(m, &m->stack, NODE_FALSE);
    case OP_INT:
        return push_int_line(m);
    case OP_BININT1:
        return push_bin_int(m, 1);
    case OP_BININT2:
        return push_bin_int(m, 2);
    case OP_BININT:
        return push_bin_int(m, 4);
    case OP_LONG1:
        return push_long1(m);
    case OP_SHORT_BINBYTES:
    case OP_SHORT_BINSTRING:
        return push_bytes(m, 1);
    case OP_BINBYTES:
    case OP_BINSTRING:
        return push_bytes(m, 4);
    case OP_BINBYTES8:
    case OP_BYTEARRAY8:
        return push_bytes(m, 8);
    case OP_STRING:
        return push_string_line(m);
    case OP_EMPTY_LIST:
        return push_container(m, KIND_LIST);
    case OP_EMPTY_TUPLE:
        return push_container(m, KIND_TUPLE);
    case OP_LIST:
        return collect_marked(m, KIND_LIST);
    case OP_TUPLE:
        return collect_marked(m, KIND_TUPLE);
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        return collect_last(m, (uint32_t)(byte - OP_TUPLE1) + 1);
    case OP_APPEND:
        return append_one(m);
    case OP_APPENDS:
        return append_marked(m);
    case OP_MEMOIZE:
        return memo_put(m, m->memo.count);
    case OP_PUT:
        return memo_line(m, memo_put);
    case OP_BINPUT:
        return memo_number(m, 1, memo_put);
    case OP_LONG_BINPUT:
        return memo_number(m, 4, memo_put);
    case OP_GET:
        return memo_line(m, memo_get);
    case OP_BINGET:
        return memo_number(m, 1, memo_get);
    case OP_LONG_BINGET:
        return memo_number(m, 4, memo_get);
    default:
        return refuse(m, byte);
    }
}

static int check_shape(const struct machine *m, const struct vector **images,
                       const struct vector **same)
{
    const struct node *root = m->stack.count == 1 ? &m->nodes[m->stack.items[0]] : NULL;
    if (root == NULL || (root->kind != KIND_TUPLE && root->kind != KIND_LIST) ||
        root->as.list.count != 2)
        return sfc_fail(m->err, SFC_ECORRUPT, "pickle: not a pair of (images, same-or-not)");
    const struct node *a = &m->nodes[root->as.list.items[0]];
    const struct node *b = &m->nodes[root->as.list.items[1]];
    if ((a->kind != KIND_LIST && a->kind != KIND_TUPLE) ||
        (b->kind != KIND_LIST && b->kind != KIND_TUPLE))
        return sfc_fail(m->err, SFC_ECORRUPT, "pickle: holds %s and %s instead of two lists",
                        kind_names[a->kind], kind_names[b->kind]);
    if (a->as.list.count != 2 * (uint64_t)b->as.list.count || b->as.list.count == 0)
        return sfc_fail(m->err, SFC_ECORRUPT, "pickle: %u images for %u pairs", a->as.list.count,
                        b->as.list.count);
    *images = &a->as.list;
    *same = &b->as.list;
    return SFC_OK;
}

static int fill_images(const struct machine *m, const struct vector *images, struct sfc_pairs *out)
{
    for (uint32_t i = 0; i < images->count; i++) {
        const struct node *node = &m->nodes[images->items[i]];
        if (node->kind != KIND_BYTES)
            return sfc_fail(m->err, SFC_ECORRUPT, "pickle: image %u is %s instead of bytes", i,
                            kind_names[node->kind]);
        out->images[i] = node->as.bytes;
    }
    return SFC_OK;
}

static int fill_same(const struct machine *m, const struct vector *same, struct sfc_pairs *out)
{
    for (uint32_t i = 0; i < same->count; i++) {
        const struct node *node = &m->nodes[same->items[i]];
        bool number = node->kind == KIND_BOOL || node->kind == KIND_INT;
        if (!number || node->as.number < 0 || node->as.number > 1)
            return sfc_fail(m->err, SFC_ECORRUPT, "pickle: entry %u of the second list is %s", i,
                            number ? "neither 0 nor 1" : kind_names[node->kind]);
        out->same[i] = node->as.number == 1;
    }
    return SFC_OK;
}

static int build_pairs(struct machine *m, struct sfc_pairs *out)
{
    const struct vector *images = NULL, *same = NULL;
    struct sfc_pairs pairs = {0};
    int rc = check_shape(m, &images, &same);
    if (rc != SFC_OK)
        return rc;
    pairs.pairs = same->count;
    pairs.images = malloc(images->count * sizeof *pairs.images);
    pairs.same = malloc(same->count * sizeof *pairs.same);
    if (pairs.images == NULL || pairs.same == NULL)
        rc = no_memory(m);
    if (rc == SFC_OK)
        rc = fill_images(m, images, &pairs);
    if (rc == SFC_OK)
        rc = fill_same(m, same, &pairs);
    if (rc != SFC_OK) {
        sfc_pairs_free(&pairs);
        return rc;
    }
    pairs.unescaped = m->unescaped;
    m->unescaped = NULL;
    *out = pairs;
    return SFC_OK;
}

static int machine_init(struct machine *m)
{
    uint32_t index = 0;
    uint64_t limit = m->length / 8 + 4096; /* images are far larger: a bound on memory */
    m->node_limit = limit < UINT32_MAX - 1 ? (uint32_t)limit : UINT32_MAX - 1;
    int rc = new_node(m, (struct node){.kind = KIND_BOOL, .as.number = 0}, &index);
    if (rc == SFC_OK)
        rc = new_node(m, (struct node){.kind = KIND_BOOL, .as.number = 1}, &index);
    if (rc == SFC_OK)
        rc = new_node(m, (struct node){.kind = KIND_MARK}, &index);
    return rc;
}

static void machine_free(struct machine *m)
{
    for (uint32_t i = NODE_FIRST_FREE; i < m->node_count; i++)
        if (m->nodes[i].kind == KIND_LIST || m->nodes[i].kind == KIND_TUPLE)
            free(m->nodes[i].as.list.items);
    free(m->nodes);
    free(m->stack.items);
    free(m->memo.items);
    free(m->unescaped);
}

int sfc_pairs_parse(const uint8_t *data, size_t length, struct sfc_pairs *out,
                    struct sfc_error *err)
{
    struct machine m = {.data = data, .length = length, .err = err};
    if (length > FILE_LIMIT)
        return sfc_fail(err, SFC_ELIMIT, "pickle: more than 4 GiB");
    int rc = machine_init(&m);
    while (rc == SFC_OK && !m.stopped) {
        if (m.at == length)
            rc = sfc_fail(err, SFC_ECORRUPT, "pickle: the file ends after %zu bytes without STOP",
                          length);
        else
            rc = step(&m);
    }
    if (rc == SFC_OK)
        rc = build_pairs(&m, out);
    machine_free(&m);
    return rc;
}

int sfc_pairs_read(const char *path, struct sfc_pairs *out, struct sfc_error *err)
{
    uint8_t *file = NULL;
    size_t length = 0;
    int rc = sfc_file_read(path, FILE_LIMIT, &file, &length, err);
    if (rc != SFC_OK)
        return rc;
    rc = sfc_pairs_parse(file, length, out, err);
    if (rc != SFC_OK) {
        free(file);
        return sfc_prefix(err, "%s", path);
    }
    out->file = file;
    return SFC_OK;
}

void sfc_pairs_free(struct sfc_pairs *pairs)
{
    free(pairs->images);
    free(pairs->same);
    free(pairs->file);
    free(pairs->unescaped);
    memset(pairs, 0, sizeof *pairs);
}

static bool put_image(FILE *stream, const struct sfc_bytes *image)
{
    uint8_t head[5] = {OP_BINBYTES};
    for (int i = 0; i < 4; i++)
        head[1 + i] = (uint8_t)(image->size >> (8 * i));
    return fwrite(head, 1, sizeof head, stream) == sizeof head &&
           fwrite(image->data, 1, image->size, stream) == image->size;
}

static bool put_pairs(FILE *stream, const struct sfc_bytes *images, const bool *same, size_t pairs)
{
    static const uint8_t begin[] = {OP_PROTO, 3, OP_EMPTY_LIST, OP_MARK};
    static const uint8_t middle[] = {OP_APPENDS, OP_EMPTY_LIST, OP_MARK};
    static const uint8_t end[] = {OP_APPENDS, OP_TUPLE2, OP_STOP};
    bool ok = fwrite(begin, 1, sizeof begin, stream) == sizeof begin;
    for (size_t i = 0; i < 2 * pairs && ok; i++)
        ok = put_image(stream, &images[i]);
    ok = ok && fwrite(middle, 1, sizeof middle, stream) == sizeof middle;
    for (size_t i = 0; i < pairs && ok; i++)
        ok = putc(same[i] ? OP_NEWTRUE : OP_NEWFALSE, stream) != EOF;
    return ok && fwrite(end, 1, sizeof end, stream) == sizeof end;
}

int sfc_pairs_write(const char *path, const struct sfc_bytes *images, const bool *same,
                    size_t pairs, struct sfc_error *err)
{
    struct sfc_out_file file = {0};
    for (size_t i = 0; i < 2 * pairs; i++)
        if (images[i].size > UINT32_MAX)
            return sfc_fail(err, SFC_ELIMIT, "%s: image %zu is larger than 4 GiB", path, i);
    int rc = sfc_out_file_open(&file, path, err);
    if (rc != SFC_OK)
        return rc;
    if (!put_pairs(file.stream, images, same, pairs))
        rc = sfc_fail_errno(err, "write %s", path);
    else
        rc = sfc_out_file_commit(&file, err);
    sfc_out_file_abort(&file);
    return rc;
}
