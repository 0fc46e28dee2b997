#include "runtime/text/tokenizer_json_parts.h"

#include <algorithm>

#include "runtime/text/sentencepiece.h"

namespace headrace {
namespace {

[[noreturn]] void unsupported(const JsonField& field, const std::string& what,
                              const std::string& supported) {
  field.fail(what + " is not supported; headrace supports " + supported +
             ". Choose a model of the Llama, Mistral, SmolLM2, Qwen or OPT kind.");
}

[[noreturn]] void unsupported_type(const JsonField& field, const std::string& supported) {
  unsupported(field, "\"" + field.at("type").string() + "\"", supported);
}

std::string plain_pattern(const JsonField& field) {
  const JsonField pattern = field.at("pattern");
  const auto text = pattern.find("String");
  if (!text || text->string().empty()) {
    unsupported(pattern, "a pattern that is no String, or empty", "{\"String\": ...}");
  }
  return text->string();
}

// What a file asks for must not make much of little text.
void bound_growth(const JsonField& field, const std::vector<NormalizerStep>& steps) {
  constexpr size_t kMostSteps = 8, kLongest = 16, kMostGrowth = 16;
  size_t growth = 1;
  for (const NormalizerStep& step : steps) {
    const bool replaces = step.kind == NormalizerStep::Kind::kReplace;
    if (replaces) {
      growth *= std::max<size_t>(1, (step.to.size() + step.from.size() - 1) / step.from.size());
    }
    if (step.to.size() > kLongest || growth > kMostGrowth || steps.size() > kMostSteps) {
      unsupported(field, "making text so much longer", "short texts to prepend or put in");
    }
  }
}

void normalizer(const JsonField& field, Tokenizer::Data& data) {
  using Kind = NormalizerStep::Kind;
  const std::string& type = field.at("type").string();
  std::vector<NormalizerStep>& steps = data.pretokenizer.normalizer;
  if (type == "NFC") {
    steps.push_back({Kind::kNfc, "", ""});
  } else if (type == "Prepend") {
    steps.push_back({Kind::kPrepend, "", field.at("prepend").string()});
  } else if (type == "Replace") {
    steps.push_back({Kind::kReplace, plain_pattern(field), field.at("content").string()});
  } else if (type == "Sequence") {
    const JsonField list = field.at("normalizers");
    for (size_t i = 0; i < list.array_size(); ++i) normalizer(list.at(i), data);
  } else {
    unsupported_type(field, "null, NFC, Prepend, Replace and a Sequence of those");
  }
  bound_growth(field, steps);
}

std::string pattern_name(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return "gpt2";
  if (pattern == kQwen2Pattern) return "qwen2";
  if (pattern == kLlama3Pattern) return "llama3";
  return "its own";
}

void append_name(Tokenizer::Data& data, const std::string& name) {
  data.pattern += (data.pattern.empty() ? "" : "+") + name;
}

void split_step(const JsonField& field, Tokenizer::Data& data) {
  const JsonField pattern = field.at("pattern");
  const auto regex = pattern.find("Regex");
  if (!regex) unsupported(pattern, "a pattern that is no Regex", "{\"Regex\": ...}");
  const JsonField behavior = field.at("behavior");
  if (behavior.string() != "Isolated") {
    unsupported(behavior, "\"" + behavior.string() + "\"", "Isolated");
  }
  if (const auto invert = field.find("invert"); invert && invert->boolean()) {
    unsupported(*invert, "true", "false");
  }
  data.pretokenizer.splits.emplace_back(regex->string(), regex->place());
  append_name(data, pattern_name(regex->string()));
}

// Walks nested sequences in order. `seen_bytes`: ByteLevel has been met; nothing may follow it, as
// it would see the byte alphabet and not the text.
void pretokenizer_step(const JsonField& field, Tokenizer::Data& data, bool& seen_bytes) {
  constexpr const char* kSupported =
      "Sequence, Split with a Regex, Digits, and ByteLevel as the last step";
  const std::string& type = field.at("type").string();
  if (type == "Sequence") {
    const JsonField list = field.at("pretokenizers");
    for (size_t i = 0; i < list.array_size(); ++i) pretokenizer_step(list.at(i), data, seen_bytes);
    return;
  }
  if (seen_bytes) unsupported(field, "a step after ByteLevel", kSupported);
  if (type == "Split") {
    split_step(field, data);
  } else if (type == "Digits") {
    data.pretokenizer.splits.push_back(
        SplitPattern::digits(field.boolean_or("individual_digits", false)));
    append_name(data, "digits");
  } else if (type == "ByteLevel") {
    seen_bytes = true;
    data.pretokenizer.add_prefix_space = field.boolean_or("add_prefix_space", true);
    if (field.boolean_or("use_regex", true)) {
      data.pretokenizer.last.emplace_back(kGpt2Pattern, field.place());
      append_name(data, "gpt2");
    }
  } else {
    unsupported_type(field, kSupported);
  }
}

void metaspace(const JsonField& field, Tokenizer::Data& data) {
  if (field.at("type").string() != "Metaspace") {
    unsupported_type(field, "null and Metaspace with byte_fallback");
  }
  Metaspace space;
  const JsonField mark = field.at("replacement");
  if (mark.string() != kSpaceMark) unsupported(mark, "\"" + mark.string() + "\"", "U+2581");
  const auto scheme = field.find("prepend_scheme");
  const std::string prefix = scheme ? scheme->string() : "always";
  if (prefix == "never" || !field.boolean_or("add_prefix_space", true)) {
    space.prefix = Metaspace::Prefix::kNever;
  } else if (prefix == "first") {
    space.prefix = Metaspace::Prefix::kFirst;
  } else if (prefix != "always") {
    unsupported(*scheme, "\"" + prefix + "\"", "always, first and never");
  }
  space.splits = field.boolean_or("split", true);
  data.pretokenizer.metaspace = space;
}

std::vector<int> special_ids(const JsonField& processor, const JsonField& item,
                             const Tokenizer::Data& data) {
  const JsonField name = item.at("id");
  const JsonField ids = processor.at("special_tokens").at(name.string()).at("ids");
  std::vector<int> out;
  for (size_t i = 0; i < ids.array_size(); ++i) {
    const int64_t id = ids.at(i).integer();
    if (id < 0 || static_cast<uint64_t>(id) >= data.contents.size() ||
        !data.present[static_cast<size_t>(id)]) {
      ids.at(i).fail("token " + std::to_string(id) +
                     " is not in the vocabulary. Fetch the model's files again.");
    }
    out.push_back(static_cast<int>(id));
  }
  return out;
}

void template_step(const JsonField& field, Tokenizer::Data& data) {
  const JsonField single = field.at("single");
  std::vector<int> before;
  std::vector<int> after;
  int sequences = 0;
  for (size_t i = 0; i < single.array_size(); ++i) {
    const JsonField item = single.at(i);
    if (const auto token = item.find("SpecialToken")) {
      const std::vector<int> ids = special_ids(field, *token, data);
      std::vector<int>& side = sequences == 0 ? before : after;
      side.insert(side.end(), ids.begin(), ids.end());
    } else if (item.find("Sequence")) {
      ++sequences;
    } else {
      unsupported(item, "this item", "SpecialToken and Sequence");
    }
  }
  if (sequences != 1)
    unsupported(single, "a template without exactly one Sequence", "one Sequence");
  data.prefix.insert(data.prefix.begin(), before.begin(), before.end());
  data.suffix.insert(data.suffix.end(), after.begin(), after.end());
}

void post_processor(const JsonField& field, Tokenizer::Data& data) {
  const std::string& type = field.at("type").string();
  if (type == "TemplateProcessing") {
    template_step(field, data);
  } else if (type == "Sequence") {
    const JsonField list = field.at("processors");
    for (size_t i = 0; i < list.array_size(); ++i) post_processor(list.at(i), data);
  } else if (type != "ByteLevel") {  // ByteLevel only trims offsets, which headrace has none of
    unsupported_type(field, "null, ByteLevel, TemplateProcessing and a Sequence of those");
  }
}

}  // namespace

void read_normalizer(const JsonField& root, Tokenizer::Data& data) {
  if (const auto field = root.find("normalizer")) normalizer(*field, data);
}

void read_pretokenizer(const JsonField& root, Tokenizer::Data& data) {
  if (data.sentencepiece) {
    if (const auto field = root.find("pre_tokenizer")) metaspace(*field, data);
    return;
  }
  const JsonField field = root.at("pre_tokenizer");
  bool seen_bytes = false;
  pretokenizer_step(field, data, seen_bytes);
  if (!seen_bytes) {
    unsupported(field, "a pre_tokenizer without ByteLevel", "byte-level tokenizers");
  }
  if (data.pattern.empty()) data.pattern = "none";
  if (data.pattern == "digits+gpt2") data.pattern = "smollm";
}

void read_post_processor(const JsonField& root, Tokenizer::Data& data) {
  if (const auto field = root.find("post_processor")) post_processor(*field, data);
}

void check_decoder(const JsonField& root, const Tokenizer::Data& data) {
  const JsonField field = root.at("decoder");
  const std::string& type = field.at("type").string();
  if (!data.sentencepiece) {
    if (type != "ByteLevel") unsupported_type(field, "ByteLevel");
    return;
  }
  // Tokenizer turns marks into spaces and bytes' names into bytes, whichever it is.
  if (type == "Metaspace") return;
  if (type != "Sequence") unsupported_type(field, "Metaspace and Sequence with byte_fallback");
  const JsonField steps = field.at("decoders");
  for (size_t i = 0; i < steps.array_size(); ++i) {
    const JsonField step = steps.at(i);
    const std::string& kind = step.at("type").string();
    const bool is_space = kind == "Replace" && plain_pattern(step) == kSpaceMark &&
                          step.at("content").string() == " ";
    const bool is_strip = kind == "Strip" && step.at("content").string() == " ";
    if (!is_space && !is_strip && kind != "ByteFallback" && kind != "Fuse") {
      unsupported_type(step, "Replace of U+2581 by a space, ByteFallback, Fuse, Strip of a space");
    }
  }
}

}  // namespace headrace
