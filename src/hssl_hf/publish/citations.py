"""The papers whose methods a card cites, by the name of the method."""

HSSL = """\
@article{li2025hssl,
  title   = {Enhancing Representations through Heterogeneous Self-Supervised Learning},
  author  = {Li, Zhong-Yu and Yin, Bo-Wen and Liu, Yongxiang and Liu, Li and Cheng, Ming-Ming},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year    = {2025},
  note    = {arXiv:2310.05108}
}"""
SIAMESE_IM = """\
@inproceedings{tao2023siamese,
  title     = {Siamese Image Modeling for Self-Supervised Vision Representation Learning},
  author    = {Tao, Chenxin and Zhu, Xizhou and Su, Weijie and Huang, Gao and Li, Bin and Zhou, Jie and Qiao, Yu and
               Wang, Xiaogang and Dai, Jifeng},
  booktitle = {Conference on Computer Vision and Pattern Recognition},
  year      = {2023},
  note      = {arXiv:2206.01204}
}"""
MAE = """\
@inproceedings{he2022masked,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv:2111.06377}
}"""
DINO = """\
@inproceedings{caron2021emerging,
  title     = {Emerging Properties in Self-Supervised Vision Transformers},
  author    = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J{\\'e}gou, Herv{\\'e} and Mairal, Julien and
               Bojanowski, Piotr and Joulin, Armand},
  booktitle = {International Conference on Computer Vision},
  year      = {2021},
  note      = {arXiv:2104.14294}
}"""
IBOT = """\
@inproceedings{zhou2022ibot,
  title     = {{iBOT}: Image {BERT} Pre-Training with Online Tokenizer},
  author    = {Zhou, Jinghao and Wei, Chen and Wang, Huiyu and Shen, Wei and Xie, Cihang and Yuille, Alan and Kong, Tao},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  note      = {arXiv:2111.07832}
}"""
MOCO_V3 = """\
@inproceedings{chen2021empirical,
  title     = {An Empirical Study of Training Self-Supervised Vision Transformers},
  author    = {Chen, Xinlei and Xie, Saining and He, Kaiming},
  booktitle = {International Conference on Computer Vision},
  year      = {2021},
  note      = {arXiv:2104.02057}
}"""
CITATIONS = {"HSSL": HSSL, "SiameseIM": SIAMESE_IM, "MAE": MAE, "DINO": DINO, "iBOT": IBOT, "MoCo v3": MOCO_V3}
