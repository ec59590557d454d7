"""The benchmark's own files."""

from preftune.evaluation.published import PublishedFile, Repository

OUTPUTS_LICENCE = "CC BY-NC 4.0"

REPOSITORY = Repository(
    "tatsu-lab/alpaca_eval",
    "cd543a149df89434d8a54582c0151c0b945c3d20",
    (
        PublishedFile(
            "baseline_gpt4_1106_preview.json",
            "results/gpt4_1106_preview/model_outputs.json",
            "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
            1_899_765,
            OUTPUTS_LICENCE,
        ),
        PublishedFile(
            "alpaca_eval_clf.txt",
            "src/alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
            "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
            1_398,
        ),
        PublishedFile(
            "leaderboard.csv",
            "src/alpaca_eval/leaderboards/data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
            "fe32bf85c2f7429038faa4c9a884d1d131726454ff84a4b810a91c1c7a2aa0e9",
            28_339,
        ),
    ),
)
