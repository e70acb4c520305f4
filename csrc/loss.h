// The contrastive loss of a block of similarities, and its gradient in their place.
#pragma once
#include <math.h>

#include "product.h"

namespace fastprobe::FP_ISA {

// The softmax over one row or over all, from similarities to G = dL/dS, in place.
struct Loss {
    int64_t rows, train, per_class, ld;
    double temperature;
    bool last;  // the loss itself is wanted
    double total = 0;

    // Similarities are at most 1: unless exp(-2/tau) leaves float32's range, 1/tau serves as the largest exponent.
    bool bounded() const { return 2 / temperature <= 60; }
    float per_row() const { return static_cast<float>(1 / (rows * temperature)); }

    // exp(s/tau - shift), zero in the padding.
    inline __attribute__((always_inline)) vf power(const float* s, int64_t c, vf scale, vf shift) const {
        vf e = exp_nonpositive(fma(load(s + c), scale, shift));
        if (c + VL > train)
            for (int l = 0; l < VL; ++l) e[l] = c + l < train ? e[l] : 0.0f;
        return e;
    }

    float shift_of(const float* s) const {
        if (bounded()) return static_cast<float>(-1 / temperature);
        float top = s[0];
        for (int64_t c = 1; c < train; ++c) top = s[c] > top ? s[c] : top;
        return static_cast<float>(-top / temperature);
    }

    void one_way(float* block, int64_t first, int64_t count) {
        const vf scale = splat(static_cast<float>(1 / temperature));
        for (int64_t i = 0; i < count; ++i) {
            float* s = block + i * ld;
            const int64_t y = (first + i) / per_class;
            const float shift = shift_of(s), truth = s[y];
            vf sums = {};
            for (int64_t c = 0; c < train; c += VL) {
                const vf e = power(s, c, scale, splat(shift));
                store(s + c, e);
                sums += e;
            }
            const float all = sum(sums);
            const vf weight = splat(per_row() / all);
            for (int64_t c = 0; c < train; c += VL) store(s + c, load(s + c) * weight);
            s[y] -= per_row();
            if (last) total += (log((double)all) - shift - truth / temperature) / rows;
        }
    }

    // Half of it from each direction. `columns` holds, for every text, its sum over the sounds and its shift.
    void symmetric(float* all_rows, float* columns) {
        const vf scale = splat(static_cast<float>(1 / temperature));
        const int64_t width = padded(train);
        float *sums = columns, *shifts = columns + width;
        for (int64_t c = 0; c < width; ++c) sums[c] = 0, shifts[c] = static_cast<float>(-1 / temperature);
        if (!bounded())
            for (int64_t c = 0; c < train; ++c) {
                float top = all_rows[c];
                for (int64_t i = 1; i < rows; ++i) top = all_rows[i * ld + c] > top ? all_rows[i * ld + c] : top;
                shifts[c] = static_cast<float>(-top / temperature);
            }
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t c = 0; c < train; c += VL)
                store(sums + c, load(sums + c) + power(all_rows + i * ld, c, scale, load(shifts + c)));
        if (last)
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t y = i / per_class;
                total += 0.5 * (log((double)sums[y]) - shifts[y] - all_rows[i * ld + y] / temperature) / rows;
            }
        for (int64_t c = 0; c < train; ++c) sums[c] = 0.5f * per_class * per_row() / sums[c];
        for (int64_t i = 0; i < rows; ++i) {
            float* s = all_rows + i * ld;
            const int64_t y = i / per_class;
            const float shift = shift_of(s), truth = s[y];
            vf row = {};
            for (int64_t c = 0; c < train; c += VL) row += power(s, c, scale, splat(shift));
            const float all = sum(row);
            const vf weight = splat(0.5f * per_row() / all);
            for (int64_t c = 0; c < train; c += VL)
                store(s + c, fma(power(s, c, scale, splat(shift)), weight,
                                 power(s, c, scale, load(shifts + c)) * load(sums + c)));
            s[y] -= per_row();
            if (last) total += 0.5 * (log((double)all) - shift - truth / temperature) / rows;
        }
    }
};

}  // namespace fastprobe::FP_ISA
