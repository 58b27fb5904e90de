"""What help texts say beside the options: files, exit status, examples."""

from __future__ import annotations

ABOUT = """\
Non-negative matrix factorization A ≈ Z D of a non-negative matrix A (n × d): codes Z (n × K) and
a dictionary D (K × d) of K concepts. Semi-NMF of a matrix of any signs."""

MATRICES = """\
matrices:
  read: .npy .npz .pt .pth .safetensors .csv .tsv .parquet .h5ad; several .npy, .safetensors, .npz
  or .h5ad files, or a folder of the first two, are the rows of one matrix, and may be larger than
  memory; sparse .npz and .h5ad files stay sparse
  written: .npy (as they are computed) .npz .pt .pth .safetensors .csv .tsv
  -: the standard input (a .npy file or a text table), or the standard output (.npy)"""

STATUS = """\
exit status:
  0 done; 1 failed, such as a full disk; 2 a command line that cannot be carried out; 3 data that
  cannot be used; 4 not converged, with --strict; 130 interrupted; 143 terminated"""

EXAMPLES = {
    "": """\
examples:
  fastnmf fit A.npy -k 50 -o model.safetensors --codes Z.npy
  fastnmf encode model.safetensors B.npy -o ZB.npy
  fastnmf report model.safetensors -o report.html""",
    "fit": """\
examples:
  fastnmf fit A.npy -k 50 -o model.safetensors
  fastnmf fit counts.csv -k 20 --solver mu --seed 0 -o model.safetensors --codes Z.csv
  fastnmf fit shards/ -k 5000 --max-memory 16GB --checkpoint c.safetensors -o model.safetensors
  zcat A.csv.gz | fastnmf fit - -k 10 -o model.safetensors --json""",
    "encode": """\
examples:
  fastnmf encode model.safetensors B.npy -o ZB.npy
  fastnmf encode model.safetensors - -o - < B.csv > ZB.npy""",
    "decode": """\
examples:
  fastnmf decode model.safetensors Z.npy -o A_hat.npy""",
    "report": """\
examples:
  fastnmf report model.safetensors
  fastnmf report model.safetensors -o report.html
  fastnmf report model.safetensors --json | jq .relative_error""",
    "show": """\
examples:
  fastnmf show model.safetensors A.npy -o concepts.html
  fastnmf show model.safetensors patches.npy --image-shape 16x16x3 -o concepts.html
  fastnmf show model.safetensors A.npy --texts tokens.txt --features neurons.txt""",
    "choose": """\
examples:
  fastnmf choose A.npy 10 20 50 100 --picture choice.png
  fastnmf choose A.npy 10 20 50 --holdout entries --folds 3 --seed 0 -o choice.csv
  fastnmf choose A.npy 10 20 50 --checkpoint c.safetensors --resume""",
    "stability": """\
examples:
  fastnmf stability A.npy -k 20 --runs 20 --seed 0
  fastnmf stability A.npy -k 20 -o consensus.safetensors --codes Z.npy
  fastnmf stability A.npy -k 20 --json | jq .score""",
    "info": """\
examples:
  fastnmf info
  fastnmf info --json""",
    "demo": """\
examples:
  fastnmf demo
  fastnmf demo -k 200 --patches 5000 -o small.png""",
    "completion": """\
examples:
  fastnmf completion bash > ~/.local/share/bash-completion/completions/fastnmf
  fastnmf completion zsh >> ~/.zshrc
  fastnmf completion fish > ~/.config/fish/completions/fastnmf.fish""",
}

# command → one line about it
COMMANDS = {
    "fit": "learn the dictionary of A",
    "encode": "compute codes Z of A for the dictionary of a model",
    "decode": "compute the reconstruction Z D of codes Z",
    "report": "show the summary of the fit of a model, or write a page about it",
    "show": "show the concepts of a model: top features, top rows, pictures, a map",
    "choose": "compare numbers of concepts by their error on data that are held out",
    "stability": "fit several times, and compare and combine the concepts",
    "info": "list backends, why some are not usable here, and what a bug report needs",
    "demo": "learn the concepts of a photograph, and draw them",
    "completion": "print a script that completes commands and options in a shell",
}

# command → what follows its name
USAGE = {
    "fit": "A [A ...] -k K -o MODEL [options]",
    "encode": "MODEL A [A ...] -o Z [options]",
    "decode": "MODEL Z [Z ...] -o A_HAT [options]",
    "report": "MODEL [-o PAGE] [options]",
    "show": "MODEL A [-o PAGE] [options]",
    "choose": "A K [K ...] [options]",
    "stability": "A -k K [options]",
    "info": "[options]",
    "demo": "[options]",
    "completion": "SHELL",
}
