#include "kernels/lag.h"

void sfc_lag_table(const float *rates, double momentum, double weight_decay, uint64_t from,
                   uint64_t to, struct sfc_lag *table)
{
    double ww = 1, wm = 0, mw = 0, mm = 1;
    for (uint64_t u = to;; u--) {
        table[u] = (struct sfc_lag){(float)ww, (float)wm, (float)mw, (float)mm};
        if (u == from)
            return;
        double rate = rates[u - 1];
        if (rate < 0)
            continue;
        /* times the map of step u: w -> (1 - rate * decay) w - rate * momentum * m,
         * m -> decay * w + momentum * m */
        double w_part = ww, m_part = mw;
        ww = w_part * (1 - rate * weight_decay) + wm * weight_decay;
        wm = momentum * (wm - rate * w_part);
        mw = m_part * (1 - rate * weight_decay) + mm * weight_decay;
        mm = momentum * (mm - rate * m_part);
    }
}

void sfc_lag_apply(const struct sfc_lag *lag, float *w, float *m, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        float v = w[k];
        w[k] = lag->ww * v + lag->wm * m[k];
        m[k] = lag->mw * v + lag->mm * m[k];
    }
}
