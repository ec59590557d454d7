"""The benchmark's own files."""

from preftune.evaluation.published import PublishedFile, Repository

REPOSITORY = Repository(
    "lmarena/arena-hard-auto",
    "196f6b826783b3da7310e361a805fa36f0be83f3",
    (
        PublishedFile(
            "v0.1/question.jsonl",
            "data/arena-hard-v0.1/question.jsonl",
            "2650242d2883f22b2abd498f273b6a7e02253cce533f5c91a858e1d44aa3002f",
            272_075,
        ),
        PublishedFile(
            "v0.1/gpt-4-0314.jsonl",
            "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl",
            "0f6abc84de4600fde987d9db70f838f4ecdbd27a2f1f4058c12aa322a6f791b2",
            1_270_631,
        ),
        PublishedFile(
            "v0.1/arena-hard-v0.1.yaml",
            "config/arena-hard-v0.1.yaml",
            "87ac45a188421218349697b5eda95cc77f6e60b6f61495d67d8cfebba3210528",
            428,
        ),
        PublishedFile(
            "v2.0/question.jsonl",
            "data/arena-hard-v2.0/question.jsonl",
            "a75cef6623db6b27aec810497b059f0659705d7ff48dcbccc5bd5b130728ac73",
            947_596,
        ),
        PublishedFile(
            "v2.0/o3-mini-2025-01-31.jsonl",
            "data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl",
            "c23a7c255eead99f7f86ad48aa1d8ccdb5b3334f2097e0e1e09184df87265e03",
            4_184_593,
        ),
        PublishedFile(
            "v2.0/arena-hard-v2.0.yaml",
            "config/arena-hard-v2.0.yaml",
            "ee68e5c6ac98a79720bf11014fc3f7fc3c3e5899153b3b08efe3db0e174215a0",
            543,
        ),
        PublishedFile(
            "judge_utils.py",
            "utils/judge_utils.py",
            "cbb093f4fc27408d8447e946392f26f98538b1e3950f574aca91a0f7595167b4",
            3_957,
        ),
    ),
)
