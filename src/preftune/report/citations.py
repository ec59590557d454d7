"""How to cite the papers behind a run's parts, by their numbers on arXiv."""

import re
from collections.abc import Iterable

ARXIV = re.compile(r"(?<![\d.])\d{4}\.\d{4,5}(?!\d)")
MAPPO, UPO, LORA = "2507.21183", "2405.17956", "2106.09685"

PAPERS: dict[str, tuple[str, str]] = {
    "1707.06347": ("Schulman, John", "Proximal Policy Optimization Algorithms"),
    "2101.03961": (
        "Fedus, William",
        "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
    ),
    LORA: ("Hu, Edward J.", "LoRA: Low-Rank Adaptation of Large Language Models"),
    "2203.02155": ("Ouyang, Long", "Training language models to follow instructions with human feedback"),
    "2302.08582": ("Korbak, Tomasz", "Pretraining Language Models with Human Preferences"),
    "2305.10425": ("Zhao, Yao", "SLiC-HF: Sequence Likelihood Calibration with Human Feedback"),
    "2305.14314": ("Dettmers, Tim", "QLoRA: Efficient Finetuning of Quantized LLMs"),
    "2305.14718": (
        "Baheti, Ashutosh",
        "Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models",
    ),
    "2305.18290": (
        "Rafailov, Rafael",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    ),
    "2307.09288": ("Touvron, Hugo", "Llama 2: Open Foundation and Fine-Tuned Chat Models"),
    "2309.16240": (
        "Wang, Chaoqi",
        "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
    ),
    "2310.03708": (
        "Zhou, Zhanhui",
        "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization",
    ),
    "2310.12036": (
        "Azar, Mohammad Gheshlaghi",
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    ),
    "2312.09244": (
        "Eisenstein, Jacob",
        "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
    ),
    "2401.08417": (
        "Xu, Haoran",
        "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine "
        "Translation",
    ),
    "2402.00856": ("Ji, Haozhe", "Towards Efficient Exact Optimization of Language Model Alignment"),
    "2402.01306": ("Ethayarajh, Kawin", "KTO: Model Alignment as Prospect Theoretic Optimization"),
    "2402.03300": (
        "Shao, Zhihong",
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    ),
    "2402.05369": (
        "Chen, Huayu",
        "Noise Contrastive Alignment of Language Models with Explicit Rewards",
    ),
    "2402.10571": ("Amini, Afra", "Direct Preference Optimization with an Offset"),
    "2402.13228": (
        "Pal, Arka",
        "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    ),
    "2402.14740": (
        "Ahmadian, Arash",
        "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    ),
    "2403.00409": (
        "Chowdhury, Sayak Ray",
        "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    ),
    "2403.07691": ("Hong, Jiwoo", "ORPO: Monolithic Preference Optimization without Reference Model"),
    "2403.19159": (
        "Park, Ryan",
        "Disentangling Length from Quality in Direct Preference Optimization",
    ),
    "2404.04656": (
        "Jung, Seungjae",
        "Binary Classifier Optimization for Large Language Model Alignment",
    ),
    "2404.16767": ("Gao, Zhaolin", "REBEL: Reinforcement Learning via Regressing Relative Rewards"),
    "2404.19733": ("Pang, Richard Yuanzhe", "Iterative Reasoning Preference Optimization"),
    "2405.00675": ("Wu, Yue", "Self-Play Preference Optimization for Language Model Alignment"),
    "2405.14734": ("Meng, Yu", "SimPO: Simple Preference Optimization with a Reference-Free Reward"),
    UPO: (
        "Badrinath, Anirudhan",
        "Unified Preference Optimization: Language Model Alignment Beyond the Preference Frontier",
    ),
    "2405.19107": (
        "Richemond, Pierre Harvey",
        "Offline Regularised Reinforcement Learning for Large Language Models Alignment",
    ),
    "2405.19316": ("Fisch, Adam", "Robust Preference Optimization through Reward Model Distillation"),
    "2406.08414": (
        "Lu, Chris",
        "Discovering Preference Optimization Algorithms with and for Large Language Models",
    ),
    "2406.11827": ("Zhou, Wenxuan", "WPO: Enhancing RLHF with Weighted Preference Optimization"),
    "2408.06266": (
        "D'Oosterlinck, Karel",
        "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in "
        "Alignment",
    ),
    "2409.06411": ("Liu, Wei", "Length Desensitization in Direct Preference Optimization"),
    "2410.01257": ("Wang, Zhilin", "HelpSteer2-Preference: Complementing Ratings with Preferences"),
    "2503.20783": ("Liu, Zichen", "Understanding R1-Zero-Like Training: A Critical Perspective"),
    MAPPO: (
        "Lan, Guangchen",
        "MaPPO: Maximum a Posteriori Preference Optimization with Prior Knowledge",
    ),
}
"""First author and title by number; a paper that is not here is cited by its number alone."""


def arxiv_numbers(texts: Iterable[str]) -> list[str]:
    """The papers that texts name, each once."""
    return list(dict.fromkeys(number for text in texts for number in ARXIV.findall(text)))


def bibtex(number: str) -> str:
    """A BibTeX entry of a paper on arXiv."""
    author, title = PAPERS.get(number, ("", f"arXiv {number}"))
    fields = {
        "title": f"{{{title}}}",
        "author": f"{author} and others" if author else "",
        # The first four digits of a number are the year and month of the first version.
        "year": f"20{number[:2]}",
        "eprint": number,
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{number}",
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{arxiv{number.replace('.', '_')},", *lines, "}"])
