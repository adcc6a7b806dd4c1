"""Where figures are shown while they come in: TensorBoard always; wandb, mlflow and trackio if a recipe names them."""
