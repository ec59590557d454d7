"""Sampling, on a tiny random Llama in float32 with a tokenizer of twenty words."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    TopPLogitsWarper,
)

from preftune.errors import InputError
from preftune.sampling import slots
from preftune.sampling.sampler import sample_responses

WORDS = 20
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}w0"
PROMPTS = ["w3", "w4 w5 w6 w7 w8 w9", "w1 w2 w3", "w9 w9"]


@pytest.fixture(scope="module")
def tokenizer():
    """Words w0 to w19, an end and a padding token, and a chat template that adds w0 for the answer."""
    vocabulary = {"<end>": 0, "<pad>": 1} | {f"w{i}": i + 2 for i in range(WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def model():
    """Two layers with random weights, large enough that the next token is far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 2,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def tokens(samples):
    """The token ids alone."""
    return [[response.tokens for response in group] for group in samples]


def without_end(model):
    """A copy of the model whose end token never comes, so that every response runs to the last step."""
    changed = copy.deepcopy(model)
    changed.lm_head = torch.nn.Linear(32, WORDS + 2)
    with torch.no_grad():
        changed.lm_head.weight.copy_(model.lm_head.weight)
        changed.lm_head.bias.zero_()[0] = -1e4
    return changed


@pytest.mark.parametrize("rows", [1, 8])
def test_greedy_equals_generate(model, tokenizer, rows):
    """At temperature 0 each prompt, alone or beside longer ones, gets what transformers' generate gives."""
    sampled = sample_responses(model, tokenizer, PROMPTS, n=2, max_new_tokens=12, temperature=0.0, rows=rows)
    for prompt, group in zip(PROMPTS, sampled, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=12,
        )[0, inputs["input_ids"].shape[1] :]
        assert [response.tokens for response in group] == [tuple(expected.tolist())] * 2


SIZES = {
    "vocab_size": WORDS + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL = {"vocab_size": WORDS + 2, "n_layer": 2, "n_head": 4}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
ARCHITECTURES = {
    "qwen3": Qwen3Config(**SIZES, **ENDS, head_dim=8),
    "gpt2": GPT2Config(**SMALL, **ENDS, n_embd=32),
    "bloom": BloomConfig(**SMALL, **ENDS, hidden_size=32),
    # Windows shorter than prompt and response: their caches forget.
    "mistral": MistralConfig(**SIZES, **ENDS, sliding_window=5),
    "gemma2": Gemma2Config(**SIZES, **ENDS, head_dim=8, sliding_window=5),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_cache_equals_generate(architecture, tokenizer, tiny_model):
    """Where prompts wait for slots and where batches are padded, greedy responses are those of generate."""
    model = tiny_model(ARCHITECTURES[architecture]).eval()
    sampled = sample_responses(model, tokenizer, PROMPTS, n=2, max_new_tokens=12, temperature=0.0, rows=4)
    for prompt, group in zip(PROMPTS, sampled, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )[0, ids.shape[1] :]
        assert [response.tokens for response in group] == [tuple(expected.tolist())] * 2


def test_a_model_without_a_cache_to_share_is_refused(tokenizer):
    """A Mamba, whose state is no cache of keys and values, gets an error that names the other engines."""
    config = MambaConfig(vocab_size=WORDS + 2, hidden_size=32, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"MambaForCausalLM does not use transformers' Cache.* engine=vllm"):
        sample_responses(model, tokenizer, PROMPTS, n=1, max_new_tokens=2)


def test_more_samples_and_more_tokens_keep_what_was_there(model, tokenizer):
    """The first of 5 responses are those of n=2, and a longer response begins with the shorter one."""
    few = tokens(sample_responses(model, tokenizer, PROMPTS, n=2, max_new_tokens=6, rows=4))
    more = tokens(sample_responses(model, tokenizer, PROMPTS, n=5, max_new_tokens=20, rows=10))
    assert [[response[:6] for response in group[:2]] for group in more] == few


def test_a_repeated_prompt_counts_from_where_the_caller_says(model, tokenizer):
    """The second group of a prompt given twice is that of the prompt alone with one repeat before."""
    settings = {"n": 3, "max_new_tokens": 12}
    first, second = tokens(sample_responses(model, tokenizer, ["w3", "w3"], **settings))
    assert tokens(sample_responses(model, tokenizer, ["w3"], repeats=[0], **settings)) == [first]
    assert tokens(sample_responses(model, tokenizer, ["w3"], repeats=[1], **settings)) == [second]


def test_a_full_cache_grows(model, tokenizer, monkeypatch):
    """Responses beyond the cache's first size are those of a cache that was large enough."""
    settings = {"n": 4, "max_new_tokens": 40}
    expected = tokens(sample_responses(without_end(model), tokenizer, PROMPTS, **settings))
    monkeypatch.setattr(slots, "ROOM_AHEAD", 1)
    assert tokens(sample_responses(without_end(model), tokenizer, PROMPTS, **settings)) == expected


def test_samples_depend_on_the_prompt_and_the_seed_only(model, tokenizer):
    """Neither the rows decoded together nor the other prompts change a sample; the seed does."""
    settings = {"n": 4, "max_new_tokens": 20}
    expected = tokens(sample_responses(model, tokenizer, PROMPTS, rows=4, **settings))
    assert tokens(sample_responses(model, tokenizer, PROMPTS, rows=16, **settings)) == expected
    assert tokens(sample_responses(model, tokenizer, PROMPTS[2:3], **settings)) == expected[2:3]
    assert tokens(sample_responses(model, tokenizer, PROMPTS, seed=1, **settings)) != expected


@pytest.mark.parametrize(("temperature", "top_p"), [(0.5, 1.0), (1.0, 1.0), (1.0, 0.7)])
def test_the_first_token_follows_the_models_distribution(model, tokenizer, temperature, top_p):
    """Over 4000 draws the first token's frequencies pass a chi-square test against softmax(logits / T).

    With top-p, among the tokens that transformers' own TopPLogitsWarper leaves.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer("w3 w4")["input_ids"]])).logits[0, -1]
    logits = TopPLogitsWarper(top_p)(None, logits.double()[None] / temperature)[0]
    expected = logits.softmax(-1) * 4000
    (group,) = sample_responses(
        model, tokenizer, ["w3 w4"], n=4000, max_new_tokens=1, temperature=temperature, top_p=top_p
    )
    drawn = torch.tensor([response.tokens[0] for response in group])
    counts = drawn.bincount(minlength=len(expected)).double()
    assert not counts[expected == 0].any()
    # Tokens expected less than five times are pooled, as the test's approximation asks.
    rare = expected < 5
    pooled = [torch.cat([each[~rare], each[rare].sum()[None]]) for each in (counts, expected)]
    pooled = [each[: len(each) - int(pooled[1][-1] == 0)] for each in pooled]
    assert chisquare(*(each.numpy() for each in pooled)).pvalue > 0.01


@pytest.mark.parametrize("architecture", ["qwen3", "mistral"])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 0.7)])
def test_a_response_knows_its_probability(architecture, temperature, top_p, tokenizer, tiny_model):
    """Its log-probability is that of its tokens under softmax(logits / T), within transformers' own nucleus.

    Of rows that enter and leave in slots, and of padded ones; at temperature 0 nothing else could be drawn.
    """
    decoder = tiny_model(ARCHITECTURES[architecture])
    settings = {"n": 3, "max_new_tokens": 12, "temperature": temperature, "top_p": top_p}
    for prompt, group in zip(
        PROMPTS, sample_responses(decoder, tokenizer, PROMPTS, rows=6, **settings), strict=True
    ):
        asked = tokenizer(prompt)["input_ids"]
        for response in group:
            with torch.no_grad():
                logits = decoder(input_ids=torch.tensor([[*asked, *response.tokens]])).logits[0]
            logits = logits[len(asked) - 1 : -1].double()
            if temperature == 0:
                assert response.logp == 0
                continue
            logps = TopPLogitsWarper(top_p)(None, logits / temperature).log_softmax(-1)
            expected = logps.gather(1, torch.tensor(response.tokens)[:, None]).sum().item()
            assert response.logp == pytest.approx(expected, abs=1e-4)


def test_the_end_token_ends_a_response(model, tokenizer):
    """A finished response has its end token last and only there; a cut one has all the tokens asked for."""
    groups = sample_responses(model, tokenizer, PROMPTS, n=16, max_new_tokens=12)
    responses = [response for group in groups for response in group]
    assert {response.finished for response in responses} == {True, False}
    for response in responses:
        assert 0 not in response.tokens[:-1]
        assert response.finished == (response.tokens[-1] == 0)
        assert response.finished or len(response.tokens) == 12
        assert "<end>" not in response.text


def test_the_samples_of_a_prompt_differ(model, tokenizer):
    """The n responses are separate draws, and a prompt given twice draws anew."""
    groups = sample_responses(without_end(model), tokenizer, ["w3", "w3"], n=8, max_new_tokens=20)
    assert len({response.tokens for group in groups for response in group}) == 16


def test_chats_go_through_the_template(model, tokenizer):
    """A chat is sampled as the text that its template makes, special tokens not added twice."""
    chat = [{"role": "user", "content": "w5 w6"}]
    as_chat = sample_responses(model, tokenizer, [chat], n=4, max_new_tokens=8)
    as_text = sample_responses(model, tokenizer, ["w5 w6 w0"], n=4, max_new_tokens=8)
    assert tokens(as_chat) == tokens(as_text)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_model_is_left_as_it_was(model, tokenizer, training, dtype):
    """Sampling leaves every module's mode, the weights and their precision alone."""
    model.train(training)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sample_responses(model, tokenizer, PROMPTS, n=2, max_new_tokens=4, dtype=dtype)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_are_sampled_through(model, tokenizer):
    """A model wrapped by PEFT samples with its adapters: fresh ones change nothing, others do."""
    settings = {"n": 4, "max_new_tokens": 12}
    plain = tokens(sample_responses(model, tokenizer, PROMPTS, **settings))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert tokens(sample_responses(wrapped, tokenizer, PROMPTS, **settings)) == plain
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert tokens(sample_responses(wrapped, tokenizer, PROMPTS, **settings)) != plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n=0 must be >= 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"rows": 0}, "rows=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"prompts": [""]}, r"prompts\[0\] is empty"),
    ],
)
def test_impossible_settings_are_refused(model, tokenizer, settings, message):
    """The error names the setting and its value before anything is sampled."""
    with pytest.raises(InputError, match=message):
        sample_responses(model, tokenizer, **({"prompts": ["w3"]} | settings))
