#include "proto/base/text.h"

#include <stdint.h>
#include <string.h>

size_t sfc_utf8_length(const unsigned char *text)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = text[0] < 0x80             ? 1
               : (text[0] & 0xe0) == 0xc0 ? 2
               : (text[0] & 0xf0) == 0xe0 ? 3
               : (text[0] & 0xf8) == 0xf0 ? 4
                                          : 0;
    uint32_t value = n > 1 ? text[0] & (0x7fu >> n) : text[0];
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
        value = value << 6 | (text[i] & 0x3f);
    }
    if (n == 0 || value < least[n] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) {
        return 0;
    }
    return n;
}

bool sfc_is_control(const unsigned char *at)
{
    return at[0] < 0x20 || at[0] == 0x7f || (at[0] == 0xc2 && at[1] < 0xa0);
}

void sfc_clean_text(char *text, bool lines)
{
    unsigned char *at = (unsigned char *)text;
    while (*at != '\0') {
        size_t length = sfc_utf8_length(at);
        bool stays = length > 0 && (!sfc_is_control(at) || (lines && *at == '\n'));
        length = length > 0 ? length : 1;
        if (!stays) {
            memset(at, '?', length);
        }
        at += length;
    }
}

void sfc_mark_cut(char *text, size_t size, int wanted)
{
    if (wanted < (int)size) {
        return;
    }
    size_t at = size - 4;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80) {
        at--;
    }
    memcpy(text + at, "...", 4);
}
