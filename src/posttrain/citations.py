"""The papers that the methods come from, for model cards."""

CITATIONS = {
    "sft": """\
@inproceedings{ouyang2022training,
  title     = {Training language models to follow instructions with human feedback},
  author    = {Long Ouyang and Jeff Wu and Xu Jiang and Diogo Almeida and Carroll L. Wainwright and Pamela Mishkin and
               Chong Zhang and Sandhini Agarwal and Katarina Slama and Alex Ray and John Schulman and Jacob Hilton and
               Fraser Kelton and Luke Miller and Maddie Simens and Amanda Askell and Peter Welinder and
               Paul Christiano and Jan Leike and Ryan Lowe},
  booktitle = {Advances in Neural Information Processing Systems 35},
  year      = {2022},
  eprint    = {2203.02155},
  archivePrefix = {arXiv}
}""",
    "reward": """\
@inproceedings{stiennon2020learning,
  title     = {Learning to summarize with human feedback},
  author    = {Nisan Stiennon and Long Ouyang and Jeffrey Wu and Daniel M. Ziegler and Ryan Lowe and Chelsea Voss and
               Alec Radford and Dario Amodei and Paul F. Christiano},
  booktitle = {Advances in Neural Information Processing Systems 33},
  year      = {2020},
  eprint    = {2009.01325},
  archivePrefix = {arXiv}
}""",
    "dpo": """\
@inproceedings{rafailov2023direct,
  title     = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author    = {Rafael Rafailov and Archit Sharma and Eric Mitchell and Christopher D. Manning and Stefano Ermon and
               Chelsea Finn},
  booktitle = {Advances in Neural Information Processing Systems 36},
  year      = {2023},
  eprint    = {2305.18290},
  archivePrefix = {arXiv}
}""",
    "grpo": """\
@article{shao2024deepseekmath,
  title   = {DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author  = {Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Xiao Bi and Haowei Zhang and
             Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo},
  journal = {arXiv preprint arXiv:2402.03300},
  year    = {2024}
}""",
    "rloo": """\
@inproceedings{ahmadian2024back,
  title     = {Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human Feedback in LLMs},
  author    = {Arash Ahmadian and Chris Cremer and Matthias Gall{\\'e} and Marzieh Fadaee and Julia Kreutzer and
               Olivier Pietquin and Ahmet {\\"U}st{\\"u}n and Sara Hooker},
  booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics},
  year      = {2024},
  eprint    = {2402.14740},
  archivePrefix = {arXiv}
}""",
}
