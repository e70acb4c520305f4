// The Python module: shapes and types are checked, pointers taken; no arithmetic and no copies.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "gathered.h"
#include "probe.h"

namespace nb = nanobind;
using namespace fastprobe;

namespace {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

void require(bool fine, const char* message) {
  if (!fine) throw std::invalid_argument(message);
}

void in_range(const In<int64_t, 1>& index, size_t limit, const char* message) {
  for (size_t i = 0; i < index.shape(0); ++i)
    require(index.data()[i] >= 0 && static_cast<size_t>(index.data()[i]) < limit, message);
}

const Kernels& find(const std::string& isa) {
  for (auto k = supported_kernels(); *k; ++k)
    if (isa == (*k)->name) return **k;
  if (bf16_kernels() && isa == bf16_kernels()->name) return *bf16_kernels();
  throw std::invalid_argument("this machine or this build has no instruction set '" + isa + "'");
}

std::vector<std::string> supported() {
  std::vector<std::string> names;
  for (auto k = supported_kernels(); *k; ++k) names.emplace_back((*k)->name);
  return names;
}

std::vector<std::string> compiled() {
  std::vector<std::string> names;
  for (auto name = compiled_isas(); *name; ++name) names.emplace_back(*name);
  return names;
}

Optimizer optimizer_of(const std::string& name) {
  if (name == "adam-mini") return Optimizer::adam_mini;
  if (name == "sgd") return Optimizer::sgd;
  if (name == "adam") return Optimizer::adam;
  throw std::invalid_argument("unknown optimizer '" + name + "'");
}

Algebra algebra_of(const std::string& name) {
  if (name == "auto") return Algebra::automatic;
  if (name == "direct") return Algebra::direct;
  if (name == "gram") return Algebra::gram;
  throw std::invalid_argument("`algebra` must be auto, direct or gram; got '" + name + "'");
}

void train(In<float, 2> text, In<float, 2> audio, std::optional<In<float, 2>> centroids, In<int64_t, 1> train_classes,
           std::optional<In<int64_t, 2>> clips, int64_t rows, In<int64_t, 1> queries, In<int64_t, 1> order,
           int64_t unseen, In<int64_t, 1> truth, In<int64_t, 2> permutations, In<float, 2> text_start,
           In<float, 2> audio_start, In<double, 1> rates, const std::string& optimizer, double temperature,
           double momentum, double weight_decay, bool symmetric, int64_t neighbours, Out<double, 1> loss,
           Out<int32_t, 2> ranks, Out<int32_t, 2> unseen_ranks, std::optional<Out<float, 3>> text_heads,
           std::optional<Out<float, 3>> audio_heads, const std::string& isa, int threads, const std::string& algebra) {
  Batch b{};
  b.classes = text.shape(0), b.text_width = text.shape(1);
  b.clips = audio.shape(0), b.audio_width = audio.shape(1);
  b.dim = text_start.shape(1), b.train = train_classes.shape(0), b.rows = rows, b.steps = rates.shape(0);
  b.queries = queries.shape(0), b.probes = permutations.shape(0);
  const size_t train = train_classes.shape(0), d = text_start.shape(1);
  require(train > 0 && d > 0 && text.shape(1) > 0 && audio.shape(1) > 0, "empty inputs");
  require(rows > 0 && rows % b.train == 0, "rows must be a multiple of the train classes");
  require(permutations.shape(1) == text.shape(0), "permutations must have one column per class");
  require(text_start.shape(0) == text.shape(1), "text_start must have one row per text feature");
  require(audio_start.shape(0) == audio.shape(1) && audio_start.shape(1) == d, "audio_start has the wrong shape");
  require(truth.shape(0) == queries.shape(0), "truth must match queries");
  require(order.shape(0) == text.shape(0), "order must have one entry per class");
  require(unseen >= 0 && unseen <= b.classes, "unseen out of range");
  require(neighbours >= 0 && neighbours <= b.queries, "neighbours out of range");
  require(centroids.has_value() != clips.has_value(), "either centroids or clips");
  if (centroids)
    require(centroids->shape(0) == train && centroids->shape(1) == audio.shape(1) && b.rows == b.train,
            "centroids must be one row per train class");
  if (clips) {
    require(clips->shape(0) == rates.shape(0) && static_cast<int64_t>(clips->shape(1)) == rows,
            "clips must be (steps, rows)");
    in_range(In<int64_t, 1>(clips->data(), {clips->size()}, nb::handle()), audio.shape(0), "clips out of range");
  }
  in_range(train_classes, text.shape(0), "train_classes out of range");
  in_range(queries, audio.shape(0), "queries out of range");
  in_range(order, text.shape(0), "order out of range");
  in_range(truth, unseen, "truth out of range");
  in_range(In<int64_t, 1>(permutations.data(), {permutations.size()}, nb::handle()), text.shape(0),
           "permutations out of range");
  require(loss.shape(0) == permutations.shape(0), "loss must have one entry per probe");
  require(ranks.shape(0) == permutations.shape(0) && ranks.shape(1) == queries.shape(0),
          "ranks must be (probes, queries)");
  require(unseen_ranks.shape(0) == permutations.shape(0) && unseen_ranks.shape(1) == queries.shape(0),
          "unseen_ranks must match ranks");
  require(text_heads.has_value() == audio_heads.has_value(), "both heads or none");
  if (text_heads) {
    require(text_heads->shape(0) == permutations.shape(0) && text_heads->shape(1) == text.shape(1) &&
                text_heads->shape(2) == d,
            "text_heads has the wrong shape");
    require(audio_heads->shape(0) == permutations.shape(0) && audio_heads->shape(1) == audio.shape(1) &&
                audio_heads->shape(2) == d,
            "audio_heads has the wrong shape");
  }
  b.text = text.data(), b.audio = audio.data();
  b.centroids = centroids ? centroids->data() : nullptr;
  b.step_clips = clips ? clips->data() : nullptr;
  b.train_classes = train_classes.data(), b.permutations = permutations.data();
  b.query_rows = queries.data(), b.order = order.data(), b.truth = truth.data(), b.unseen = unseen;
  b.text_start = text_start.data(), b.audio_start = audio_start.data(), b.rates = rates.data();
  b.optimizer = optimizer_of(optimizer), b.algebra = algebra_of(algebra);
  b.temperature = temperature, b.momentum = momentum, b.weight_decay = weight_decay, b.symmetric = symmetric;
  b.neighbours = neighbours;
  b.loss = loss.data(), b.ranks = ranks.data(), b.unseen_ranks = unseen_ranks.data();
  b.text_heads = text_heads ? text_heads->data() : nullptr;
  b.audio_heads = audio_heads ? audio_heads->data() : nullptr;
  const Kernels& kernels = find(isa);
  nb::gil_scoped_release unlocked;
  run(b, kernels, threads);
}

void exp2_of(In<float, 1> x, Out<float, 1> out, const std::string& isa) {
  require(x.shape(0) == out.shape(0), "out must have the length of x");
  find(isa).exp2(x.data(), out.data(), static_cast<int64_t>(x.shape(0)));
}

void all_in_range(const In<int64_t, 2>& index, size_t limit, const char* message) {
  in_range(In<int64_t, 1>(index.data(), {index.size()}, nb::handle()), limit, message);
}

void gathered_ranks(In<float, 3> left, In<int64_t, 1> left_of, In<float, 2> right, In<int64_t, 2> rows,
                    In<int64_t, 2> columns, In<int64_t, 1> truth, int64_t unseen, int64_t neighbours,
                    Out<int32_t, 2> ranks, Out<int32_t, 2> unseen_ranks, const std::string& isa, int threads) {
  const size_t probes = rows.shape(0), queries = left.shape(1);
  require(left_of.shape(0) == probes && columns.shape(0) == probes, "one row per probe");
  require(columns.shape(1) == left.shape(2) && left.shape(2) > 0, "columns must have one entry per column of left");
  require(truth.shape(0) == queries, "truth must match the queries");
  require(unseen > 0 && static_cast<size_t>(unseen) <= rows.shape(1), "unseen out of range");
  require(neighbours >= 0 && static_cast<size_t>(neighbours) <= queries, "neighbours out of range");
  require(ranks.shape(0) == probes && ranks.shape(1) == queries, "ranks must be (probes, queries)");
  require(unseen_ranks.shape(0) == probes && unseen_ranks.shape(1) == queries, "unseen_ranks must match ranks");
  in_range(left_of, left.shape(0), "left_of out of range");
  in_range(truth, unseen, "truth out of range");
  all_in_range(rows, right.shape(0), "rows out of range");
  all_in_range(columns, right.shape(1), "columns out of range");
  GatheredRanks b{};
  b.queries = queries, b.depth = left.shape(2), b.classes = rows.shape(1), b.unseen = unseen, b.width = right.shape(1);
  b.probes = probes, b.neighbours = neighbours;
  b.left = left.data(), b.left_of = left_of.data(), b.right = right.data(), b.rows = rows.data();
  b.columns = columns.data(), b.truth = truth.data(), b.ranks = ranks.data(), b.unseen_ranks = unseen_ranks.data();
  nb::gil_scoped_release unlocked;
  run_gathered(b, isa.c_str(), threads);
}

void gathered_sums(In<double, 3> weight, In<double, 2> gram, In<int64_t, 2> index, bool lower, Out<double, 2> out,
                   const std::string& isa, int threads) {
  require(weight.shape(1) == weight.shape(2) && weight.shape(1) == index.shape(1), "weight must be (A, n, n)");
  require(gram.shape(0) == gram.shape(1), "gram must be square");
  require(out.shape(0) == index.shape(0) && out.shape(1) == weight.shape(0), "out must be (P, A)");
  all_in_range(index, gram.shape(0), "index out of range");
  GatheredSums b{};
  b.terms = weight.shape(0), b.size = weight.shape(1), b.side = gram.shape(0), b.probes = index.shape(0);
  b.lower = lower, b.weight = weight.data(), b.gram = gram.data(), b.index = index.data(), b.out = out.data();
  nb::gil_scoped_release unlocked;
  run_gathered(b, isa.c_str(), threads);
}

}  // namespace

NB_MODULE(_cpp, m) {
  m.doc() = "C++ trainer and rank counter; fastprobe.kernels.cpp_backend is its Python side.";
  m.def("supported_isas", &supported, "Instruction sets this build can use on this machine, best first.");
  m.def(
      "bf16_isa", [] { return bf16_kernels() ? std::optional<std::string>(bf16_kernels()->name) : std::nullopt; },
      "Instruction set with bfloat16 products, or None where this machine has none.");
  m.def("max_threads", &max_threads, "Probes that OpenMP would train side by side.");
  m.def("compiled_isas", &compiled, "Instruction sets in this build.");
  m.def("train", &train, nb::kw_only(), nb::arg("text"), nb::arg("audio"), nb::arg("centroids").none(),
        nb::arg("train_classes"), nb::arg("clips").none(), nb::arg("rows"), nb::arg("queries"), nb::arg("order"),
        nb::arg("unseen"), nb::arg("truth"), nb::arg("permutations"), nb::arg("text_start"), nb::arg("audio_start"),
        nb::arg("rates"), nb::arg("optimizer"), nb::arg("temperature"), nb::arg("momentum"), nb::arg("weight_decay"),
        nb::arg("symmetric"), nb::arg("neighbours"), nb::arg("loss").noconvert(), nb::arg("ranks").noconvert(),
        nb::arg("unseen_ranks").noconvert(), nb::arg("text_heads").noconvert().none(),
        nb::arg("audio_heads").noconvert().none(), nb::arg("isa"), nb::arg("threads") = 0, nb::arg("algebra") = "auto",
        "Train and rank a batch of probes into `loss`, `ranks` and the heads; see csrc/probe.h for the shapes.");
  m.def("exp2", &exp2_of, nb::arg("x"), nb::arg("out").noconvert(), nb::arg("isa"),
        "The softmax's 2^x, for its tests.");
  m.def("gathered_ranks", &gathered_ranks, nb::kw_only(), nb::arg("left"), nb::arg("left_of"), nb::arg("right"),
        nb::arg("rows"), nb::arg("columns"), nb::arg("truth"), nb::arg("unseen"), nb::arg("neighbours"),
        nb::arg("ranks").noconvert(), nb::arg("unseen_ranks").noconvert(), nb::arg("isa"), nb::arg("threads") = 0,
        "Ranks under gathered products; see csrc/gathered.h for the shapes.");
  m.def("gathered_sums", &gathered_sums, nb::kw_only(), nb::arg("weight"), nb::arg("gram"), nb::arg("index"),
        nb::arg("lower"), nb::arg("out").noconvert(), nb::arg("isa"), nb::arg("threads") = 0,
        "Sums of products with a gathered matrix; see csrc/gathered.h for the shapes.");
}
