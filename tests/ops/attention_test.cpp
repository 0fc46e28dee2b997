// Attention over a paged cache, in ragged batches and in chunks, against the plain definition over
// contiguous keys and values.

#include "engine/ops/attention.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "engine/half.h"
#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"
#include "tests/reference/quantize.h"
#include "tests/unit/child_process.h"

namespace headrace {
namespace {

// A sequence: inputs of all its tokens, its pages (NaN where nothing was written) and the outputs
// that every token must have.
struct Sequence {
  Sequence(const KvPageShape& page_shape, int query_heads, int64_t n_tokens, Random& random)
      : shape(page_shape), heads(query_heads), tokens(n_tokens) {
    q = random.floats(tokens * q_width(), 4.0f);
    k = random.floats(tokens * kv_width(), 2.0f);
    v = random.floats(tokens * kv_width());
  }

  int64_t q_width() const { return int64_t{heads} * shape.head_dim; }
  int64_t kv_width() const { return int64_t{shape.kv_heads} * shape.head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_dim)); }

  void compute_expected() {
    std::vector<float> stored_k = k, stored_v = v;
    expected.clear();
    const auto head_dim = static_cast<size_t>(shape.head_dim);
    for (size_t at = 0; at < stored_k.size(); at += head_dim) {
      reference::store(shape.format, std::span(stored_k).subspan(at, head_dim));
      reference::store(shape.format, std::span(stored_v).subspan(at, head_dim));
    }
    for (int64_t t = 0; t < tokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        const int64_t kv_head = h / (heads / shape.kv_heads);
        const auto o = reference::attention(
            {q.data() + t * q_width() + h * shape.head_dim, head_dim},
            stored_k.data() + kv_head * shape.head_dim, stored_v.data() + kv_head * shape.head_dim,
            kv_width(), t, scale());
        expected.insert(expected.end(), o.begin(), o.end());
      }
    }
  }

  // Forgets what was stored. Each page is a block of its own, so that a sanitizer sees overruns.
  void clear_pages() {
    pages.assign(static_cast<size_t>((tokens + kPageTokens - 1) / kPageTokens), {});
    page_pointers.clear();
    for (auto& page : pages) {
      page.assign(shape.page_bytes(), std::byte{0xFF});  // NaN, also as a scale
      page_pointers.push_back(page.data());
    }
  }

  KvPageShape shape;
  int heads;
  int64_t tokens;
  std::vector<float> q, k, v;  // [tokens][width]
  std::vector<float> expected;
  std::vector<std::vector<std::byte>> pages;
  std::vector<std::byte*> page_pointers;
};

// Some consecutive tokens of a sequence, as its part of a batch.
struct Part {
  Sequence* sequence;
  int64_t first, count;
};

// Runs the parts as one batch, with a row between each two that belongs to nobody.
void run_and_check(const Cpu& cpu, const std::vector<Part>& parts) {
  const Sequence& any = *parts.front().sequence;
  std::vector<AttentionSequence> sequences;
  std::vector<float> q, k, v, expected;
  const auto take = [](std::vector<float>& to, const std::vector<float>& from, const Part& part,
                       int64_t width) {
    const float* begin = from.data() + part.first * width;
    to.insert(to.end(), begin, begin + part.count * width);
    to.insert(to.end(), static_cast<size_t>(width), kNan);
  };
  int64_t row = 0;
  for (const Part& part : parts) {
    const Sequence& s = *part.sequence;
    sequences.push_back({row, part.count, part.first, s.page_pointers.data()});
    row += part.count + 1;
    take(q, s.q, part, s.q_width());
    take(k, s.k, part, s.kv_width());
    take(v, s.v, part, s.kv_width());
    take(expected, s.expected, part, s.q_width());
  }
  store_kv(cpu, any.shape, sequences, k.data(), v.data());
  std::vector<float> out = nans(std::ssize(q));
  attention(cpu, any.shape, sequences, any.heads, any.scale(), q.data(), out.data());
  ASSERT_TRUE(same_bits(expected, out)) << cpu.threads.threads() << " threads";
}

// Target and cache format; each test runs on 1, 2 and 3 threads.
class Attention : public testing::TestWithParam<std::tuple<Target, KvFormat>> {
 protected:
  KvFormat format() const { return std::get<1>(GetParam()); }

  template <typename F>
  void for_threads(F f) {
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads, 0);
      ASSERT_NO_FATAL_FAILURE(f(Cpu{pool, kernels(std::get<0>(GetParam()))}));
    }
  }

  float stored(float value) const {  // of a plain format
    reference::store(format(), {&value, 1});
    return value;
  }

  void check_quantised_layout();

  // The whole sequence, cut in chunks of so many tokens.
  void run_in_chunks(const Cpu& cpu, Sequence& s, int64_t chunk) {
    SCOPED_TRACE(testing::Message() << s.tokens << " tokens in chunks of " << chunk);
    s.clear_pages();
    for (int64_t t = 0; t < s.tokens; t += chunk) {
      ASSERT_NO_FATAL_FAILURE(run_and_check(cpu, {{&s, t, std::min(chunk, s.tokens - t)}}));
    }
  }
};

// A matrix of scores would take 64 MB.
TEST_P(Attention, ALongPromptTakesNoMatrixOfScores) {
  const std::string text = test::in_child([&]() -> std::string {
    constexpr int64_t kTokens = 4096;
    const KvPageShape shape{.kv_heads = 1, .head_dim = 16, .format = format()};
    ThreadPool pool(2, 0);
    const Cpu cpu{pool, kernels(std::get<0>(GetParam()))};
    std::vector<std::byte> page(shape.page_bytes());  // one for all: what it holds is no matter
    const std::vector<std::byte*> pages(kTokens / kPageTokens, page.data());
    const std::vector<AttentionSequence> sequences = {{0, kTokens, 0, pages.data()}};
    const std::vector<float> q(kTokens * 16, 1.0f);
    std::vector<float> out(q.size());
    const int64_t before = test::peak_bytes();
    attention(cpu, shape, sequences, 1, 1.0f, q.data(), out.data());
    const int64_t more = test::peak_bytes() - before;
    return more < 16 << 20 ? "" : "it took " + std::to_string(more) + " bytes";
  });
  EXPECT_EQ(text, "");
}

// All shapes and contexts: first a step of prompts and parts of prompts, then one in which half of
// the sequences decode a token and the others bring the rest of their prompt.
TEST_P(Attention, RaggedBatchesOfEveryShape) {
  Random random(41);
  for (const int head_dim : {16, 24, 64, 80, 82, 96, 128}) {
    for (const int kv_heads : {1, 2, 3}) {
      for (const int group : {1, 3, 7}) {
        SCOPED_TRACE(testing::Message()
                     << "head_dim " << head_dim << ", " << kv_heads << " KV heads x " << group);
        const KvPageShape shape{kv_heads, head_dim, format()};
        std::vector<Sequence> sequences;
        for (const int64_t tokens : {1, 33, 15, 100, 16, 31, 17, 32}) {
          sequences.emplace_back(shape, kv_heads * group, tokens, random).compute_expected();
        }
        for_threads([&](const Cpu& cpu) {
          std::vector<Part> begin, rest;
          for (size_t i = 0; i < sequences.size(); ++i) {
            Sequence& s = sequences[i];
            s.clear_pages();
            const int64_t first = i % 2 ? s.tokens - 1 : s.tokens / 3;
            if (first > 0) begin.push_back({&s, 0, first});
            rest.push_back({&s, first, s.tokens - first});
          }
          ASSERT_NO_FATAL_FAILURE(run_and_check(cpu, begin));
          ASSERT_NO_FATAL_FAILURE(run_and_check(cpu, rest));
        });
      }
    }
  }
}

TEST_P(Attention, ChunksDoNotMatter) {
  Random random(42);
  for (const int head_dim : {24, 64}) {
    for (const int64_t tokens : {17, 100}) {
      Sequence s({2, head_dim, format()}, 6, tokens, random);
      s.compute_expected();
      for_threads([&](const Cpu& cpu) {
        for (const int64_t chunk : {1, 7, 16, 64, 100}) {
          ASSERT_NO_FATAL_FAILURE(run_in_chunks(cpu, s, chunk));
        }
      });
    }
  }
}

// Scores so far apart that exp is clamped and the running maximum jumps from page to page.
TEST_P(Attention, ExtremeScores) {
  Random random(43);
  Sequence s({2, 64, format()}, 14, 70, random);
  for (float& x : s.q) x *= 50.0f;
  for (size_t i = 0; i < s.k.size(); i += 3) s.k[i] *= 20.0f;
  for (size_t i = 0; i < s.v.size(); i += 5) s.v[i] = -0.0f;
  for (size_t i = 1; i < s.v.size(); i += 5) s.v[i] = -1e-38f;
  s.compute_expected();
  for_threads([&](const Cpu& cpu) {
    for (const int64_t chunk : {1, 11, 70}) ASSERT_NO_FATAL_FAILURE(run_in_chunks(cpu, s, chunk));
  });
}

TEST_P(Attention, ValuesThatDoNotFitF16) {
  const float extremes[] = {65504.0f, 65519.9f, -65520.0f, 1e6f, -1e30f, 1e-8f, 2.98e-8f, -6e-8f};
  Random random(44);
  Sequence s({1, 24, format()}, 3, 40, random);
  for (float& x : s.q) x *= 1e-5f;
  for (size_t i = 0; i < s.k.size(); i += 7) s.k[i] = extremes[random.below(8)];
  for (size_t i = 0; i < s.v.size(); i += 5) s.v[i] = extremes[random.below(8)];
  if (format() != KvFormat::kF32) s.v[3] = kInf, s.v[4] = -kInf, s.k[11] = -kInf;
  s.compute_expected();
  if (format() != KvFormat::kF32) {
    for (const float o : s.expected) ASSERT_TRUE(std::isfinite(o)) << "saturated, not infinite";
  }
  for_threads([&](const Cpu& cpu) {
    for (const int64_t chunk : {1, 7, 40}) ASSERT_NO_FATAL_FAILURE(run_in_chunks(cpu, s, chunk));
  });
}

// A token whose K or V is not a number, or infinite, must not be seen by tokens before it, not even
// as 0 * NaN; and what it does to those after it is the same everywhere. With more tokens than the
// pages hold that a kernel takes at once.
TEST_P(Attention, BrokenTokensDoNotReachBack) {
  Random random(45);
  for (const float broken : {kNan, kInf, -kInf}) {
    for (const bool in_v : {true, false}) {
      for (const int64_t at : {3, 16, 37, 63, 65}) {
        SCOPED_TRACE(testing::Message()
                     << broken << " in " << (in_v ? "V" : "K") << " of token " << at);
        Sequence s({2, 24, format()}, 6, 72, random);
        (in_v ? s.v : s.k)[static_cast<size_t>(at * s.kv_width() + 5)] = broken;
        s.compute_expected();
        const auto before = std::span(s.expected).first(static_cast<size_t>(at * s.q_width()));
        ASSERT_TRUE(std::all_of(before.begin(), before.end(), [](float o) { return o == o; }));
        for_threads([&](const Cpu& cpu) {
          for (const int64_t chunk : {1, 7, 40}) {
            ASSERT_NO_FATAL_FAILURE(run_in_chunks(cpu, s, chunk));
          }
        });
      }
    }
  }
}

// An output of -0 must not become +0 because a later token of the same chunk adds 0 * v.
TEST_P(Attention, SignOfZeroDoesNotDependOnTheChunk) {
  Random random(46);
  Sequence s({1, 16, format()}, 1, 20, random);
  const float tiny = format() == KvFormat::kF16 ? -6e-8f : -1e-30f;
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t d = 0; d < 16; ++d) {
      // Token 0 has a score far below token 1's, so that p * v underflows to -0.
      s.q[t * 16 + d] = 16.0f;
      s.k[t * 16 + d] = t == 0 ? -16.0f : 0.0f;
      s.v[t * 16 + d] = t == 0 ? tiny : t == 1 ? -0.0f : 1.0f;
    }
  }
  s.compute_expected();
  if (format() == KvFormat::kF32) {
    const float o = s.expected[16];
    ASSERT_TRUE(o == 0.0f && std::signbit(o)) << "the case is not the one that is meant: " << o;
  }
  for_threads([&](const Cpu& cpu) {
    for (const int64_t chunk : {1, 2, 3, 20}) {
      ASSERT_NO_FATAL_FAILURE(run_in_chunks(cpu, s, chunk));
    }
  });
}

// Three heads of 82 elements: two groups each, rows of K in 41 pairs for q4, V padded to 96.
void Attention::check_quantised_layout() {
  Random random(47);
  Sequence s({3, 82, format()}, 3, 21, random);
  s.clear_pages();
  for_threads([&](const Cpu& cpu) {
    const AttentionSequence whole{0, s.tokens, 0, s.page_pointers.data()};
    store_kv(cpu, s.shape, {&whole, 1}, s.k.data(), s.v.data());
  });
  const bool q8 = format() == KvFormat::kQ8;
  const size_t scales = 2 * 16 * 2, k_part = 2 * scales + 16 * (q8 ? 82 : 41),
               v_part = 2 * scales + 16 * (q8 ? 96 : 48);
  ASSERT_EQ(s.shape.page_bytes(), 3 * (k_part + v_part));
  // Element d of a token whose codes for the pair or element start `row` bytes apart.
  const auto check = [&](const std::byte* part, std::span<const float> head, size_t slot,
                         const auto& code_place) {
    for (size_t first = 0; first < 82; first += 64) {
      const auto x = head.subspan(first, std::min<size_t>(64, 82 - first));
      const reference::Group group = reference::quantize(x, q8 ? 255 : 15);
      const size_t at = (first / 64 * 16 + slot) * 2;
      ASSERT_EQ(std::memcmp(part + at, &group.scale, 2), 0);
      ASSERT_EQ(std::memcmp(part + scales + at, &group.minimum, 2), 0);
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t d = first + i;
        const int byte = std::to_integer<int>(part[2 * scales + code_place(q8 ? d : d / 2, slot)]);
        ASSERT_EQ(q8 ? byte : byte >> (d % 2 * 4) & 15, group.codes[i]);
      }
    }
  };
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (size_t h = 0; h < 3; ++h) {
      const std::byte* page = s.page_pointers[static_cast<size_t>(t / 16)];
      const auto slot = static_cast<size_t>(t % 16);
      const size_t row = static_cast<size_t>(t) * 246 + h * 82;
      ASSERT_NO_FATAL_FAILURE(check(page + h * k_part, std::span(s.k).subspan(row, 82), slot,
                                    [](size_t d, size_t token) { return d * 16 + token; }));
      ASSERT_NO_FATAL_FAILURE(
          check(page + 3 * k_part + h * v_part, std::span(s.v).subspan(row, 82), slot,
                [&](size_t d, size_t token) { return token * (q8 ? 96 : 48) + d; }));
    }
  }
}

// The layout of a page as attention.h states it, element by element.
TEST_P(Attention, PageLayout) {
  if (kv_code_bits(format()) != 0) return check_quantised_layout();
  Random random(47);
  Sequence s({3, 24, format()}, 3, 21, random);
  s.clear_pages();
  for_threads([&](const Cpu& cpu) {
    const AttentionSequence whole{0, s.tokens, 0, s.page_pointers.data()};
    store_kv(cpu, s.shape, {&whole, 1}, s.k.data(), s.v.data());
  });
  const size_t element = kv_element_bytes(format());
  const auto read = [&](int64_t page, size_t index) {
    const std::byte* from = s.page_pointers[static_cast<size_t>(page)] + index * element;
    float value;
    uint16_t half;
    std::memcpy(&value, from, element == 4 ? 4 : 0);
    std::memcpy(&half, from, 2);
    return element == 4 ? value : f16_to_f32(half);
  };
  ASSERT_EQ(s.shape.v_stride(), 32);
  ASSERT_EQ(s.shape.page_bytes(), element * 3 * (24 * 16 + 16 * 32));
  const size_t k_elements = 24 * 16, v_elements = 16 * 32;
  for (int64_t t = 0; t < 32; ++t) {
    const auto slot = static_cast<size_t>(t % 16);
    for (size_t h = 0; h < 3; ++h) {
      for (size_t d = 0; d < 32; ++d) {
        const float v = read(t / 16, 3 * k_elements + h * v_elements + slot * 32 + d);
        if (t >= s.tokens) {
          ASSERT_TRUE(std::isnan(v)) << "wrote a token that is not there";
          continue;
        }
        const size_t at = static_cast<size_t>(t) * 72 + h * 24 + d;
        ASSERT_EQ(v, d < 24 ? stored(s.v[at]) : 0.0f);
        if (d >= 24) continue;
        ASSERT_EQ(read(t / 16, h * k_elements + d * 16 + slot), stored(s.k[at]));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Attention,
                         testing::Combine(testing::ValuesIn(supported_targets()),
                                          testing::Values(KvFormat::kF16, KvFormat::kF32,
                                                          KvFormat::kQ8, KvFormat::kQ4)),
                         [](const auto& test) {
                           return std::string(target_name(std::get<0>(test.param))) + "_" +
                                  kv_format_name(std::get<1>(test.param));
                         });

// The plain definition is softmax(q k^T * scale) v.
TEST(AttentionReference, AgreesWithDouble) {
  Random random(48);
  Sequence s({1, 64, KvFormat::kF32}, 1, 50, random);
  s.compute_expected();
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::vector<double> p;
    double sum = 0;
    for (int64_t i = 0; i <= t; ++i) {
      double dot = 0;
      for (int64_t d = 0; d < 64; ++d) dot += double{s.q[t * 64 + d]} * s.k[i * 64 + d];
      p.push_back(std::exp(dot * s.scale()));
      sum += p.back();
    }
    for (int64_t d = 0; d < 64; ++d) {
      double o = 0;
      for (int64_t i = 0; i <= t; ++i) o += p[static_cast<size_t>(i)] / sum * s.v[i * 64 + d];
      ASSERT_NEAR(o, s.expected[static_cast<size_t>(t * 64 + d)], 1e-5);
    }
  }
}

}  // namespace
}  // namespace headrace
