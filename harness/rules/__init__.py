"""What is known to fail on Neuron and SageMaker, as rules with a source each."""
