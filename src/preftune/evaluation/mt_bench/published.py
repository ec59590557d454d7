"""The benchmark's own files."""

from preftune.evaluation.published import PublishedFile, Repository

REPOSITORY = Repository(
    "lm-sys/FastChat",
    "0e6d3e4beaab66f4d3f93db72541a4abab8af28d",
    (
        PublishedFile(
            "question.jsonl",
            "fastchat/llm_judge/data/mt_bench/question.jsonl",
            "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
            48_929,
        ),
        PublishedFile(
            "reference_gpt-4.jsonl",
            "fastchat/llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl",
            "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
            51_109,
        ),
        PublishedFile(
            "judge_prompts.jsonl",
            "fastchat/llm_judge/data/judge_prompts.jsonl",
            "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
            10_449,
        ),
    ),
)
