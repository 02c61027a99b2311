defmodule Answers.MixProject do
  use Mix.Project

  def project do
    [
      app: :answers,
      version: "0.1.0",
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      deps: [{:dspex_bridge, path: "../../elixir"}],
      releases: [answers: [include_executables_for: [:unix]]]
    ]
  end

  def application, do: [mod: {Answers.Application, []}, extra_applications: [:logger, :inets]]
end
